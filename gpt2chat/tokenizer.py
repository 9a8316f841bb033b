"""Text <-> token ids: GPT-2's byte-pair encoding from the bundled ranks, without a network."""

from __future__ import annotations

import base64
import codecs
import contextlib
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import tiktoken

from gpt2chat.errors import GPT2ChatError

RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
MOST_ADDED = 64  # control tokens that a template may put behind GPT-2's own
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a character, which no UTF-8 file can hold
# GPT-2's split pattern (openai/gpt-2, encoder.py): contractions, words, numbers, signs, white space.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# The same for texts that are cut before the last of several blanks, where it need not look ahead.
CUT_PATTERN = SPLIT_PATTERN.replace(r"\s+(?!\S)|", "")
# White space as Unicode has it; Python counts four control characters more.
IS_BLANK = np.array([chr(code).isspace() and not 0x1C <= code <= 0x1F for code in range(0x3002)])
BLANK_BYTES = bytes(32 if byte < 128 and IS_BLANK[byte] else byte for byte in range(256))


class StreamDecoder:
    """Token ids -> text as they arrive; emits whole characters only.

    A character may be spread over several tokens, so bytes go through an incremental UTF-8 decoder.
    Bytes that can never become a character come out as U+FFFD, ids beyond the vocabulary as nothing.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the characters that `token` completes, possibly none."""
        if token >= self._encoding.n_vocab:
            return ""
        return self._decoder.decode(self._encoding.decode_single_token_bytes(token))

    def flush(self) -> str:
        """Return what an unfinished character leaves behind ("" or U+FFFD) and start afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Tokenizer:
    """A byte-level BPE with one control token, `<|endoftext|>`, that no text can spell.

    `stop_ids` end an answer: that token and all ids behind it, which are those that templates add.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.end_id = encoding.eot_token
        self.stop_ids = frozenset(range(self.end_id, self.vocab_size + MOST_ADDED))

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """GPT-2's own vocabulary (50,257 ids), built from the ranks in this package.

        Raises GPT2ChatError when the ranks do not have the released SHA-256.
        """
        return cls(_gpt2_encoding())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that tells two vocabularies apart; stored in every checkpoint."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.end_id}".encode())
        for token in range(self.end_id):
            spelled = self.encoding.decode_single_token_bytes(token)
            digest.update(len(spelled).to_bytes(4, "little") + spelled)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode text as text: control markers in it become ordinary tokens.

        Lone surrogates, which no UTF-8 file can hold, become U+FFFD.
        """
        return self.encoding.encode_ordinary(text)

    def encode_apart(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts as `encode` does each, in one call and 60 % of the time: all ids, and how many each text has.

        Texts are cut where look-ahead would, so that a pattern without it splits them; the end token, which no text can
        spell, stands between the parts.
        """
        parts, first = _cut_at_blanks(texts)
        ids, lengths = self._encode_parts(parts)
        return ids, np.add.reduceat(lengths, first) if len(first) else lengths

    def _encode_parts(self, parts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        with contextlib.suppress(UnicodeEncodeError):  # of a lone surrogate
            ids = _gpt2_encoding(CUT_PATTERN).encode_to_numpy(
                END_OF_TEXT.join(parts), allowed_special={END_OF_TEXT}, disallowed_special=()
            )
            inside = ids != self.end_id
            borders = np.flatnonzero(~inside)
            if len(borders) == len(parts) - 1:  # no text spells the marker
                return ids[inside], np.diff(borders, prepend=-1, append=len(ids)) - 1
        each = [self.encode(part) for part in parts]
        return np.array([token for ids in each for token in ids], np.uint32), np.array(list(map(len, each)), np.int64)

    def decode(self, ids: Iterable[int], added: Sequence[str] = ()) -> str:
        """Decode ids; bytes that are not valid UTF-8 become U+FFFD.

        Ids behind the vocabulary become what they stand for in `added`, or nothing.
        """
        text, names = list[str](), dict(enumerate(added, self.vocab_size))
        for known, part in itertools.groupby(ids, lambda token: token < self.vocab_size):
            if known:
                text.append(self.encoding.decode(list(part), errors="replace"))
            else:
                text += [names.get(token, "") for token in part]
        return "".join(text)

    def stream_decoder(self) -> StreamDecoder:
        """Return a fresh incremental decoder for one stream of ids."""
        return StreamDecoder(self.encoding)


def _cut_at_blanks(texts: Sequence[str]) -> tuple[Sequence[str], np.ndarray]:
    """Cut texts before the last of several blanks that something follows; return the parts, and each text's first."""
    together = "\0".join(texts)
    marked = together.encode("utf-8", "surrogatepass").translate(BLANK_BYTES)
    data = np.frombuffer(marked, np.uint8)
    ends = np.append(np.flatnonzero(data == 0), len(data))
    if len(ends) == len(texts) and not _has_wide_blanks(data):
        if b"  " not in marked:
            return texts, np.arange(len(texts))
        return _parts(texts, data == 32, ends, "utf-8")
    codes = np.frombuffer(together.encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) for text in texts]) + np.arange(len(texts))
    return _parts(texts, IS_BLANK[np.minimum(codes, len(IS_BLANK) - 1)], ends, "utf-32-le")


def _parts(
    texts: Sequence[str], blank: np.ndarray, ends: np.ndarray, encoding: str
) -> tuple[Sequence[str], np.ndarray]:
    """Cut texts of which `blank` tells each unit of the encoding, with one between two of them, where they `ends`."""
    cuts = np.flatnonzero(blank[:-2] & blank[1:-1] & ~blank[2:]) + 1
    cuts = cuts[ends[np.searchsorted(ends, cuts + 1)] != cuts + 1]  # something follows
    owner = np.searchsorted(ends, cuts)
    width = 4 if encoding == "utf-32-le" else 1
    places: dict[int, list[int]] = {}
    for text, cut in zip(owner.tolist(), cuts.tolist(), strict=True):
        places.setdefault(text, []).append(cut - (int(ends[text - 1]) + 1 if text else 0))
    parts, at = list[str](), 0
    for text, inside in places.items():
        parts += texts[at:text]
        units = texts[text].encode(encoding, "surrogatepass")
        borders = itertools.pairwise([0, *inside, len(units) // width])
        parts += [units[width * a : width * b].decode(encoding, "surrogatepass") for a, b in borders]
        at = text + 1
    parts += texts[at:]
    counts = np.bincount(owner, minlength=len(texts)) + 1
    return parts, np.cumsum(counts) - counts


def _has_wide_blanks(data: np.ndarray) -> bool:
    """Whether UTF-8 holds white space beyond ASCII."""
    at = np.flatnonzero(data >= 0xC2)  # the first byte of each character beyond ASCII
    last = len(data) - 1
    one, two, three = (data[np.minimum(at + i, last)].astype(np.int64) for i in range(3))
    short = (one & 0x1F) << 6 | two & 0x3F
    code = np.where(one < 0xE0, short, (one & 0x0F) << 12 | (two & 0x3F) << 6 | three & 0x3F)
    return bool((IS_BLANK[np.minimum(code, len(IS_BLANK) - 1)] & (one < 0xF0)).any())


@lru_cache(maxsize=2)
def _gpt2_encoding(pattern: str = SPLIT_PATTERN) -> tiktoken.Encoding:
    data = resources.files("gpt2chat").joinpath("assets/r50k_base.tiktoken").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != RANKS_SHA256:
        raise GPT2ChatError(
            f"gpt2chat/assets/r50k_base.tiktoken: expected SHA-256 {RANKS_SHA256[:12]}…, found {found[:12]}…: "
            "reinstall gpt2chat"
        )
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines())}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )
