"""A decoder answers as a fresh one would, and its text ends where it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2chat import generation
from gpt2chat.errors import ContextError
from gpt2chat.generation import Decoder, StopFilter, stream_text
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer

GREEDY = GenerationConfig(temperature=0, max_new_tokens=12)
SEEDED = GenerationConfig(temperature=1, top_k=0, seed=7, max_new_tokens=12, repetition_penalty=1.3)
BASE = [5, 9, 2, 44, 17, 3, 8, 61, 30, 12]
PROMPT = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Weights far from zero, so that every id depends on all before it."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=64, vocab_size=97)).init_weights(0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * (0.05 if name == "wte.weight" else 0.4))
    return model


def answer(decoder: Decoder, prompt: Sequence[int], config: GenerationConfig, stop: Sequence[int] = ()) -> list[int]:
    return list(decoder.generate(prompt, config, stop))


@pytest.mark.parametrize("config", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    ("second", "cached"),
    [
        (BASE, len(BASE) - 1),  # regenerated
        (BASE[:4] + [90] + BASE[5:], 4),  # edited
        (BASE[:6], 5),  # shorter
        (BASE + [70, 71, 72], len(BASE)),  # longer, another continuation
        ([96, *BASE], 0),  # another beginning
    ],
    ids=["regenerated", "edited", "shorter", "longer", "other"],
)
def test_the_common_prefix_is_reused_and_changes_nothing(
    model: GPT2, config: GenerationConfig, second: list[int], cached: int
) -> None:
    decoder = Decoder(model)
    assert answer(decoder, BASE, config) == answer(Decoder(model), BASE, config)
    assert answer(decoder, second, config) == answer(Decoder(model), second, config)
    assert (decoder.prompt_tokens, decoder.cached_tokens) == (len(second), cached)


@pytest.mark.parametrize("config", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_the_next_turn_reuses_the_answer(model: GPT2, config: GenerationConfig) -> None:
    decoder = Decoder(model)
    first = answer(decoder, BASE, config)
    longer = [*BASE, *first, 1, 2, 3]
    assert answer(decoder, longer, config) == answer(Decoder(model), longer, config)
    assert decoder.cached_tokens == len(BASE) + len(first) - 1  # the last id was drawn, never computed


@given(prompts=st.lists(PROMPT, min_size=1, max_size=4), taken=st.integers(1, 12))
@settings(max_examples=30)
def test_no_history_of_prompts_changes_an_answer(model: GPT2, prompts: list[list[int]], taken: int) -> None:
    decoder = Decoder(model)
    for prompt in prompts:
        stream = decoder.generate(prompt, SEEDED, ())
        for _ in range(taken):
            next(stream)
        stream.close()
    assert answer(decoder, prompts[0], SEEDED) == answer(Decoder(model), prompts[0], SEEDED)


def test_the_answers_vary(model: GPT2) -> None:
    """What the other tests compare is not one id over and over."""
    greedy = answer(Decoder(model), BASE, GREEDY)
    assert len(set(greedy)) > 4
    assert greedy != answer(Decoder(model), [*BASE[:3], 90, *BASE[4:]], GREEDY)
    assert greedy != answer(Decoder(model), BASE, SEEDED)


def test_the_repetition_penalty_reaches_the_prompt_and_the_answer_so_far(model: GPT2) -> None:
    strong = GenerationConfig(temperature=0, max_new_tokens=40, repetition_penalty=100)
    mild = GenerationConfig(temperature=0, max_new_tokens=40)
    answers = [answer(Decoder(model), BASE, config) for config in (strong, mild)]
    assert [len({*BASE, *found}) == len(BASE) + 40 for found in answers] == [True, False]


def test_a_closed_stream_leaves_a_usable_decoder(model: GPT2) -> None:
    decoder = Decoder(model)
    stream = decoder.generate(BASE, GREEDY, ())
    begun = [next(stream), next(stream)]
    stream.close()
    assert decoder.finish_reason is None
    assert answer(decoder, BASE, GREEDY) == answer(Decoder(model), BASE, GREEDY)
    assert answer(decoder, BASE, GREEDY)[:2] == begun


def test_a_prompt_goes_through_in_slices_of_any_size(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = (BASE * 5)[:47]
    whole = answer(Decoder(model), prompt, GREEDY)
    for size in (1, 7, 46, 47):
        monkeypatch.setattr(generation, "PREFILL_TOKENS", size)
        assert answer(Decoder(model), prompt, GREEDY) == whole


def test_an_end_id_stops_and_is_not_given_out(model: GPT2) -> None:
    decoder = Decoder(model)
    whole = answer(decoder, BASE, GREEDY)
    assert (len(whole), decoder.finish_reason) == (12, "length")
    end = whole[4]
    assert answer(decoder, BASE, GREEDY, [end]) == whole[: whole.index(end)]
    assert decoder.finish_reason == "stop"
    assert answer(decoder, BASE, GREEDY) == whole


@pytest.mark.parametrize("length", [1, 60, 63])
def test_a_full_context_ends_with_length(model: GPT2, length: int) -> None:
    decoder, config = Decoder(model), GenerationConfig(temperature=0, max_new_tokens=1000)
    assert len(answer(decoder, (BASE * 7)[:length], config)) == 64 - length
    assert decoder.finish_reason == "length"


@pytest.mark.parametrize("length", [0, 64, 65, 200])
def test_a_prompt_without_room_for_an_answer_is_refused(model: GPT2, length: int) -> None:
    decoder = Decoder(model)
    expected = answer(decoder, BASE, GREEDY)
    with pytest.raises(ContextError, match=f"expected 1 to 63 tokens, got {length}"):
        answer(decoder, [1] * length, GREEDY)
    assert answer(decoder, BASE, GREEDY) == expected


# -- stop strings ------------------------------------------------------------------------------------------------

LETTERS = st.text("ab1,", max_size=24)
STOPS = st.lists(st.text("ab1,", min_size=1, max_size=5), max_size=3)


def split(text: str, cuts: set[int]) -> list[str]:
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def pushed(pieces: Sequence[str], stop: Sequence[str], lead: str = "") -> tuple[str, bool]:
    filtered = StopFilter(stop, lead)
    out = "".join([filtered.push(piece) for piece in pieces])
    return out + filtered.flush(), filtered.stopped


def cut_at_first(text: str, stop: Sequence[str], led: int = 0) -> tuple[str, bool]:
    """The law: the stop string that is complete first ends the text; of two that end together, the longer one."""
    for end in range(led + 1, len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string) and end - len(string) >= led]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(text=LETTERS, stop=st.text("ab1,", min_size=1, max_size=5), cuts=st.sets(st.integers(1, 24)))
@example(text="1,1,1,2", stop="1,1,2", cuts={1, 2, 3, 4, 5, 6})
@example(text="aaab", stop="aab", cuts={1, 2, 3})
@settings(max_examples=300)
def test_any_split_is_cut_at_the_first_stop_string(text: str, stop: str, cuts: set[int]) -> None:
    assert pushed(split(text, cuts), [stop]) == (text.partition(stop)[0], stop in text)


@given(text=LETTERS, stop=STOPS, cuts=st.sets(st.integers(1, 24)))
@example(text="ab1,", stop=["ab1,", "b1"], cuts=set())
@settings(max_examples=300)
def test_any_split_is_cut_alike_with_several_stop_strings(text: str, stop: list[str], cuts: set[int]) -> None:
    assert pushed(split(text, cuts), stop) == cut_at_first(text, stop)


@given(lead=st.text("ab", max_size=3), text=LETTERS, stop=STOPS, cuts=st.sets(st.integers(1, 24)))
@example(lead="a", text="aab", stop=["a"], cuts={1})
@settings(max_examples=300)
def test_no_stop_string_begins_within_the_lead(lead: str, text: str, stop: list[str], cuts: set[int]) -> None:
    assert pushed(split(lead + text, cuts), stop, lead) == cut_at_first(lead + text, stop, len(lead))
    if not text.startswith(lead) and not lead.startswith(text):
        assert pushed(split(text, cuts), stop, lead) == cut_at_first(text, stop)


@given(text=LETTERS, stop=STOPS, cuts=st.sets(st.integers(1, 24)))
@settings(max_examples=200)
def test_nothing_of_a_stop_string_leaks_early(text: str, stop: list[str], cuts: set[int]) -> None:
    """Whatever came out stays right, however the text goes on, and no more is held back than needed."""
    filtered, out, seen = StopFilter(stop), "", ""
    for piece in split(text, cuts):
        out += filtered.push(piece)
        seen += piece
        for string in stop:
            for size in range(1, len(string)):
                if not filtered.stopped and seen.endswith(string[:size]):
                    assert len(out) <= len(seen) - size
        if not filtered.stopped:
            assert len(out) > len(seen) - max(map(len, stop), default=1)


def test_after_a_stop_string_nothing_comes_out() -> None:
    filtered = StopFilter(["END"])
    assert filtered.push("abcEND") == "abc"
    assert (filtered.push("more"), filtered.flush(), filtered.stopped) == ("", "", True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert pushed(["abc", "d"], [""]) == ("abcd", False)


# -- text --------------------------------------------------------------------------------------------------------


def streamed(tokenizer: Tokenizer, text: str, stop: Sequence[str] = (), lead: str = "") -> list[str]:
    return list(stream_text(tokenizer.encode(text), tokenizer.stream_decoder(), stop, lead))


@pytest.mark.parametrize(
    ("text", "lead", "expected"),
    [
        (" Hello there", " ", "Hello there"),
        ("  two", " ", " two"),
        ("none", " ", "none"),
        (" ", " ", ""),
        ("", " ", ""),
        (" kept", "", " kept"),
        ("a a", "a", " a"),
        ("Bot says: yes", "Bot says: ", "yes"),
    ],
)
def test_the_lead_is_removed_once(tokenizer: Tokenizer, text: str, lead: str, expected: str) -> None:
    assert "".join(streamed(tokenizer, text, lead=lead)) == expected


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@example(text=" 👩‍👩‍👧‍👦 日本\nUser:")
def test_streamed_text_is_the_text_before_the_stop_string(tokenizer: Tokenizer, text: str) -> None:
    pieces = streamed(tokenizer, text, stop=["\nUser:"], lead=" ")
    assert "".join(pieces) == text.partition("\nUser:")[0].removeprefix(" ")
    assert all(pieces)


def test_an_unfinished_character_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀")[:-1]
    assert "".join(stream_text(ids, tokenizer.stream_decoder(), ["b"])) == "a"


def counted(ids: Sequence[int], log: list[str]) -> Iterator[int]:
    try:
        for token in ids:
            log.append("id")
            yield token
    finally:
        log.append("closed")


def test_no_id_is_drawn_behind_a_stop_string(tokenizer: Tokenizer) -> None:
    log: list[str] = []
    ids = counted(tokenizer.encode("yes\nUser: no more of this"), log)
    assert "".join(stream_text(ids, tokenizer.stream_decoder(), ["\nUser:"])) == "yes"
    assert log.count("id") == len(tokenizer.encode("yes\nUser:"))


def test_a_reader_that_leaves_ends_the_computation(tokenizer: Tokenizer) -> None:
    log: list[str] = []
    ids = counted(tokenizer.encode("one two three"), log)
    text = stream_text(ids, tokenizer.stream_decoder(), [])
    assert next(text) == "one"
    text.close()  # type: ignore[attr-defined]
    assert log == ["id", "closed"]
