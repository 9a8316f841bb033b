"""Text becomes GPT-2's ids and comes back whole, also in pieces, without a network."""

from __future__ import annotations

import socket
import time
from importlib import resources
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpt2chat.tokenizer as tokenizer_module
from gpt2chat.errors import GPT2ChatError
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MARKERS = st.lists(st.sampled_from(["<|endoftext|>", "<|", "endoftext", "|>", "<", " ", "\n"]) | TEXT).map("".join)
TRICKY = "naïve 😀👩‍👩‍👧‍👦 日本語の文 🇫🇷 e\u0301 \u200d ﷽ 𝔊"


@pytest.fixture
def reloaded() -> None:
    """Forget the encoding that earlier tests have loaded."""
    tokenizer_module._gpt2_encoding.cache_clear()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("", []),
        ("hello", [31373]),
        (" \n", [220, 198]),
        ("\n\n", [628]),
        ("don't", [9099, 470]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_ids_are_those_of_gpt2(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


def test_the_vocabulary_is_that_of_gpt2(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.end_id) == (50257, 50256)
    assert tokenizer.decode([tokenizer.end_id]) == "<|endoftext|>"


@given(text=TEXT)
@example(text=TRICKY)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=MARKERS)
@example(text="<|endoftext|>")
def test_no_text_spells_the_end_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.end_id for token in ids)


@given(text=st.text(st.characters(categories=["Cs", "Lu"]), min_size=1))
def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded == tokenizer.decode(tokenizer.encode(decoded))
    assert not any("\ud800" <= character <= "\udfff" for character in decoded)


@given(text=TEXT.filter(lambda text: "\ufffd" not in text))
@example(text=TRICKY)
def test_streaming_gives_whole_characters_only(tokenizer: Tokenizer, text: str) -> None:
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == text


@given(ids=st.lists(st.integers(0, 50256), max_size=40))
def test_streamed_pieces_join_to_the_decoded_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = tokenizer.stream_decoder()
    assert "".join([decoder.push(token) for token in ids]) + decoder.flush() == tokenizer.decode(ids)


def test_half_a_character_is_flushed_once(tokenizer: Tokenizer) -> None:
    first, *rest = tokenizer.encode("😀")
    assert rest
    decoder = tokenizer.stream_decoder()
    assert decoder.push(first) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert "".join(decoder.push(token) for token in [first, *rest]) == "😀"


def test_two_streams_do_not_meet(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.stream_decoder(), tokenizer.stream_decoder()
    first.push(tokenizer.encode("😀")[0])
    assert second.push(tokenizer.encode("a")[0]) == "a"


@pytest.mark.usefixtures("reloaded")
def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Tokenizer.gpt2().encode("Hello world") == [15496, 995]


@pytest.mark.usefixtures("reloaded")
def test_changed_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "assets/r50k_base.tiktoken"
    data = bytearray(resources.files("gpt2chat").joinpath(name).read_bytes())
    data[1000] ^= 1
    (tmp_path / "assets").mkdir()
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(tokenizer_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(GPT2ChatError, match=r"r50k_base\.tiktoken: expected SHA-256"):
        Tokenizer.gpt2()


def small_vocabulary(merges: list[bytes]) -> Tokenizer:
    ranks = {token: rank for rank, token in enumerate([bytes([value]) for value in range(256)] + merges)}
    return Tokenizer(
        tiktoken.Encoding(
            "small",
            pat_str=tokenizer_module.SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={tokenizer_module.END_OF_TEXT: len(ranks)},
        )
    )


def test_the_fingerprint_tells_vocabularies_apart(tokenizer: Tokenizer) -> None:
    others = [small_vocabulary(merges) for merges in ([], [b"ab"], [b"ab", b"cd"], [b"cd", b"ab"])]
    assert len({vocabulary.fingerprint for vocabulary in [tokenizer, *others]}) == 5
    assert small_vocabulary([b"ab"]).fingerprint == others[1].fingerprint


def test_encoding_takes_linear_time(tokenizer: Tokenizer) -> None:
    seconds = []
    for million in (1, 2):
        began = time.perf_counter()
        tokenizer.encode("a" * (million * 1_000_000))
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < 4 * seconds[0]


BLANKS = st.sampled_from([*" \n\t\r\x0b\x1c\x85\xa0\u2003\u2028\u3000\u200b", "  ", "\n\n", "\r\n"])
BITS = BLANKS | st.sampled_from(["a", "word", "é", "'s", "'", "1", "!", "😀", "\ud800", "\0", END_OF_TEXT])


@settings(max_examples=400)
@given(texts=st.lists(st.lists(BITS | st.characters(), max_size=8).map("".join), max_size=5))
def test_texts_that_are_encoded_together_get_the_ids_each_has_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids, lengths = tokenizer.encode_apart(texts)
    alone = [tokenizer.encode(text) for text in texts]
    assert ids.tolist() == [token for each in alone for token in each]
    assert lengths.tolist() == [len(each) for each in alone]
