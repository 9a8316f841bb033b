"""One rendering for training and chat: prompts are prefixes, masks are the answers, whole turns leave."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2chat.conversation import (
    TEMPLATES,
    Message,
    Template,
    fit,
    measure_many,
    render,
    render_many,
    render_prompt,
    template_named,
    turns,
)
from gpt2chat.errors import ConfigError, ContextError, DataError
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

PIECES = st.sampled_from(
    [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "[INST]",
        "\nUser:",
        "\nBot:",
        "### Response:\n",
        " ",
        "\n",
        "\n\n",
        "  \n",
        "é",
        "😀",
    ]
)
TEXT = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=4).map("".join)
PAIR = st.tuples(TEXT, TEXT).map(lambda pair: [Message("user", pair[0]), Message("assistant", pair[1])])
PAIRS = st.lists(PAIR, max_size=3).map(lambda pairs: [message for pair in pairs for message in pair])
SYSTEM = st.lists(TEXT.map(lambda text: Message("system", text)), max_size=1)
FINISHED = st.tuples(SYSTEM, PAIRS).map(lambda parts: parts[0] + parts[1])
ANY = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXT), max_size=5)

every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())


def around(template: Template, conversation: list[Message]) -> list[tuple[str, str]]:
    """The marks before and behind each message."""
    marks, before = [], ""
    for role in [message.role for message in conversation]:
        opens = role == "user" and before == "system" and template.first_user_prefix is not None
        prefix = template.first_user_prefix if opens else getattr(template, f"{role}_prefix")
        marks.append((str(prefix), str(getattr(template, f"{role}_suffix"))))
        before = role
    return marks


def ending(template: Template) -> str:
    """What a model is taught to write behind an answer."""
    first = re.search("|".join(map(re.escape, controls(template))), template.assistant_suffix)
    return template.assistant_suffix[: first.end()] if first else template.assistant_suffix


def controls(template: Template) -> list[str]:
    return [END_OF_TEXT, *template.added]


@every_template
@given(conversation=FINISHED, question=TEXT, answer=TEXT)
def test_the_prompt_is_a_prefix_of_the_training_rendering(
    tokenizer: Tokenizer, template: Template, conversation: list[Message], question: str, answer: str
) -> None:
    asked = [*conversation, Message("user", question)]
    prompt = render_prompt(asked, template, tokenizer)
    rendered = render([*asked, Message("assistant", answer)], template, tokenizer)
    assert rendered.ids[: len(prompt)] == prompt
    begins = rendered.ids[len(prompt) :]
    assert tokenizer.decode(begins).startswith(template.lead + answer)


@every_template
@given(conversations=st.lists(ANY | FINISHED, max_size=4), half=st.booleans())
def test_many_are_rendered_as_each_is(
    tokenizer: Tokenizer, template: Template, conversations: list[list[Message]], half: bool
) -> None:
    if half:  # of a character, which no UTF-8 file holds
        conversations = [*conversations, [Message("user", "\ud83d"), Message("assistant", "x", trained=False)]]
    together = render_many(conversations, template, tokenizer)
    assert len(together) == len(conversations)
    for one, conversation in zip(together, conversations, strict=True):
        alone = render(conversation, template, tokenizer)
        assert (list(one.ids), list(one.loss_mask)) == (alone.ids, alone.loss_mask)
        assert one.joinable == alone.joinable
    sizes = [(len(one.ids), one.learnt, [*one.loss_mask, 1].index(1)) for one in together]
    assert measure_many(conversations, template, tokenizer) == sizes


@every_template
@given(first=FINISHED, answer=PAIR, second=ANY)
def test_conversations_join_behind_an_answer(
    tokenizer: Tokenizer, template: Template, first: list[Message], answer: list[Message], second: list[Message]
) -> None:
    first = first + answer
    one, two = render(first, template, tokenizer), render(second, template, tokenizer)
    both = render(first + second, template, tokenizer)
    assert both.ids == [*one.ids, *two.ids]
    assert both.loss_mask == [*one.loss_mask, *two.loss_mask]


@every_template
@given(conversation=FINISHED)
def test_the_loss_mask_selects_the_answers_and_their_ends(
    tokenizer: Tokenizer, template: Template, conversation: list[Message]
) -> None:
    rendered = render(conversation, template, tokenizer)
    assert len(rendered.ids) == len(rendered.loss_mask)
    chosen = [token for token, trained in zip(rendered.ids, rendered.loss_mask, strict=True) if trained]
    answers = [message.content for message in conversation if message.role == "assistant"]
    assert tokenizer.decode(chosen, template.added) == "".join(
        template.lead + answer + ending(template) for answer in answers
    )


@every_template
@given(conversation=FINISHED)
def test_only_the_template_writes_control_tokens(
    tokenizer: Tokenizer, template: Template, conversation: list[Message]
) -> None:
    rendered = render(conversation, template, tokenizer)
    affixes = "".join(map("".join, around(template, conversation)))
    for number, mark in enumerate(controls(template)):
        assert list(rendered.ids).count(tokenizer.end_id + number) == affixes.count(mark)
    assert max([0, *rendered.ids]) <= tokenizer.end_id + len(template.added)


@every_template
@given(conversation=FINISHED)
def test_the_rendering_holds_every_message_as_written(
    tokenizer: Tokenizer, template: Template, conversation: list[Message]
) -> None:
    expected = ""
    for message, (before, after) in zip(conversation, around(template, conversation), strict=True):
        lead = template.lead if message.role == "assistant" else ""
        expected += before + lead + message.content + after
    assert tokenizer.decode(render(conversation, template, tokenizer).ids, template.added) == expected


def test_a_single_exchange_may_be_joined(tokenizer: Tokenizer) -> None:
    pair = [Message("user", "a"), Message("assistant", "b")]
    chat = TEMPLATES["chat"]
    assert render(pair, chat, tokenizer).joinable
    assert not render(pair * 2, chat, tokenizer).joinable
    assert not render([Message("system", "s"), *pair], chat, tokenizer).joinable


@given(conversation=ANY)
def test_turns_lose_nothing_and_begin_with_the_user(conversation: list[Message]) -> None:
    cut = turns(conversation)
    assert [message for turn in cut for message in turn] == conversation
    assert all(turn[0].role == "user" for turn in cut[1:])
    assert all(message.role != "user" for turn in cut for message in turn[1:])


@every_template
@given(system=SYSTEM, examples=PAIRS, old=ANY, question=TEXT, max_tokens=st.integers(1, 120))
@settings(max_examples=100)
def test_what_fits_is_within_the_limit_and_drops_the_oldest_whole_turns(
    tokenizer: Tokenizer,
    template: Template,
    system: list[Message],
    examples: list[Message],
    old: list[Message],
    question: str,
    max_tokens: int,
) -> None:
    live, newest = [*old, Message("user", question)], [Message("user", question)]
    try:
        kept, dropped = fit([*system, *examples], live, template, tokenizer, max_tokens)
    except ContextError:
        assert len(render_prompt([*system, *newest], template, tokenizer)) > max_tokens
        return
    assert len(render_prompt(kept, template, tokenizer)) <= max_tokens
    assert kept[: len(system)] == system
    assert kept[-1:] == newest
    taught, said = turns(examples), turns(old)
    rest = kept[len(system) : -1]
    possible = [
        (a, b)
        for a in range(len(taught) + 1)
        for b in range(len(said) + 1)
        if a + b == dropped and flat(taught[a:]) + flat(said[b:]) == rest
    ]
    assert possible


@every_template
def test_questions_without_answers_are_measured_as_they_are_rendered(tokenizer: Tokenizer, template: Template) -> None:
    live = [Message("user", "hi")] * 4
    size = len(render_prompt(live, template, tokenizer))
    assert fit([], live, template, tokenizer, size)[1] == 0
    assert fit([], live, template, tokenizer, size - 1)[1] == 1


@every_template
@given(system=SYSTEM, examples=PAIRS, old=PAIRS, question=TEXT, max_tokens=st.integers(1, 200))
def test_live_turns_leave_before_examples(
    tokenizer: Tokenizer,
    template: Template,
    system: list[Message],
    examples: list[Message],
    old: list[Message],
    question: str,
    max_tokens: int,
) -> None:
    """The examples that stay are those that stay when nothing else was said."""
    newest = [Message("user", question)]
    try:
        alone, _ = fit([*system, *examples], newest, template, tokenizer, max_tokens)
    except ContextError:
        return
    kept, _ = fit([*system, *examples], [*old, *newest], template, tokenizer, max_tokens)
    assert kept[: len(alone) - 1] == alone[:-1]


@every_template
def test_a_conversation_that_fits_stays_whole(tokenizer: Tokenizer, template: Template) -> None:
    pinned = [Message("system", "s"), Message("user", "q"), Message("assistant", "a")]
    live = [Message("user", "hi"), Message("assistant", "ho"), Message("user", "hi again")]
    size = len(render_prompt([*pinned, *live], template, tokenizer))
    assert fit(pinned, live, template, tokenizer, size) == ([*pinned, *live], 0)
    kept, dropped = fit(pinned, live, template, tokenizer, size - 1)
    assert (kept, dropped) == ([*pinned, live[-1]], 1)


@every_template
def test_a_message_that_cannot_fit_is_told_its_size(tokenizer: Tokenizer, template: Template) -> None:
    system, live = [Message("system", "be kind")], [Message("user", "word " * 50)]
    room = 40 - len(render(system, template, tokenizer).ids)
    tail = len(render_prompt([*system, *live], template, tokenizer)) - 40 + room
    with pytest.raises(ContextError, match=rf"has {tail} tokens .* leaves {room}\b"):
        fit(system, live, template, tokenizer, 40)


@every_template
def test_a_template_round_trips(template: Template) -> None:
    assert Template.from_dict(template.to_dict()) == template
    assert template_named(template.name) is template


@pytest.mark.parametrize(
    "changed",
    [{"name": 1}, {"lead": None}, {"stop": "\n"}, {"stop": [1]}, {"stop": None}, {"more": ""}, {"user_prefix": b"x"}],
)
def test_a_damaged_template_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="template: expected"):
        Template.from_dict({**TEMPLATES["chat"].to_dict(), **changed})


def test_a_template_with_a_missing_field_is_refused() -> None:
    data = TEMPLATES["chat"].to_dict()
    del data["user_prefix"]
    with pytest.raises(ConfigError, match="user_prefix"):
        Template.from_dict(data)


def test_an_unknown_template_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected one of chat, .*got 'chatty'"):
        template_named("chatty")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(DataError, match="system, user, assistant, got 'bot'"):
        Message("bot", "hi")


def flat(groups: Sequence[Sequence[Message]]) -> list[Message]:
    return [message for group in groups for message in group]
