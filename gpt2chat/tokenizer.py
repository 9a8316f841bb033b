"""Text <-> token ids: GPT-2's byte-pair encoding from the bundled ranks, without a network."""

from __future__ import annotations

import base64
import codecs
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import tiktoken

from gpt2chat.errors import GPT2ChatError

RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
# GPT-2's split pattern (openai/gpt-2, encoder.py): contractions, words, numbers, signs, white space.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class StreamDecoder:
    """Token ids -> text as they arrive; emits whole characters only.

    A character may be spread over several tokens, so bytes go through an incremental UTF-8 decoder.
    Bytes that can never become a character come out as U+FFFD.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Return the characters that `token` completes, possibly none."""
        return self._decoder.decode(self._encoding.decode_single_token_bytes(token))

    def flush(self) -> str:
        """Return what an unfinished character leaves behind ("" or U+FFFD) and start afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Tokenizer:
    """A byte-level BPE with one control token, `<|endoftext|>`, that no text can spell."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.end_id = encoding.eot_token

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
        """Encode texts as `encode` does each, in one call: all their ids, and how many each has."""
        joined = END_OF_TEXT.join(texts)
        try:
            ids = self.encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}, disallowed_special=())
        except UnicodeEncodeError:
            ids = np.zeros(0, np.uint32)
        borders = np.flatnonzero(ids == self.end_id)
        if len(borders) != len(texts) - 1:  # a text spells the marker, or holds a lone surrogate
            each = [self.encode(text) for text in texts]
            return np.array([token for part in each for token in part], np.uint32), np.array(list(map(len, each)), int)
        return np.delete(ids, borders), np.diff(borders, prepend=-1, append=len(ids)) - 1

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; bytes that are not valid UTF-8 become U+FFFD."""
        return self.encoding.decode(list(ids), errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        """Return a fresh incremental decoder for one stream of ids."""
        return StreamDecoder(self.encoding)


@lru_cache(maxsize=1)
def _gpt2_encoding() -> tiktoken.Encoding:
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
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )
