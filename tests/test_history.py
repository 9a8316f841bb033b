"""A chat led by its caller: each member of ChatHistory, ChatMessage, ChatCache and ChatModel does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import weights_of

import gpt2chat
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message, render, render_prompt
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.history import ChatHistory, ChatMessage, ChatModel
from gpt2chat.model import GPT2
from gpt2chat.runtime import TorchRuntime
from gpt2chat.tokenizer import Tokenizer

CHAT = TEMPLATES["chat"]


@pytest.fixture(scope="module")
def model(tiny_model: GPT2) -> ChatModel:
    loaded = Checkpoint(tiny_model.config, weights_of(tiny_model), CHAT, about={"base": "tiny"})
    return ChatModel(loaded, TorchRuntime(tiny_model))


@pytest.fixture
def chat(model: ChatModel) -> ChatHistory:
    """Four messages behind a system prompt."""
    chat = ChatHistory(model, system_prompt="Be kind.")
    for number, role in enumerate(("user", "bot", "user", "bot"), 1):
        chat.append(role, f"message {number}")
    return chat


def texts(chat: ChatHistory) -> list[str]:
    return [message.text for message in chat]


def answered(chat: ChatHistory, question: str, **options: Any) -> str:
    chat.append("user", question)
    prompt, _ = chat.embed_chat()
    reply = chat.model.generate(prompt, kv_cache=chat.kv_cache, **({"max_new_tokens": 5} | options))
    reply.wait()
    chat.append("bot", reply)
    return reply.text


# -- messages ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_module_runs(tiny_checkpoint: Path) -> None:
    model = gpt2chat.ChatModel.from_pretrained(tiny_checkpoint, api="torch", quantization="q8f16_0", api_token="none")
    chat = gpt2chat.ChatHistory(model, system_prompt="You are a helpful assistant.")
    chat.append("user", "Hello")
    prompt, position = chat.embed_chat()
    reply = model.generate(prompt, kv_cache=chat.kv_cache, stop_tokens=chat.template.stop, max_new_tokens=6)
    pieces = list(reply)
    message = chat.append("bot", reply)
    assert (position, message.text, message.role) == (0, "".join(pieces), "bot")
    chat.append("user", "And now?")
    _, position = chat.embed_chat()
    assert position >= len(prompt)


def test_append_takes_texts_replies_and_messages(chat: ChatHistory, model: ChatModel) -> None:
    assert chat.append("user", "a").text == "a"
    assert chat.append(text="b").role == "user"
    assert chat.append("assistant", msg="c").role == "bot"
    chat.append("user", "d")
    reply = model.generate(chat.embed_chat()[0], max_new_tokens=3, streaming=False)
    assert reply.eos
    assert chat.append("bot", reply).text == reply.text
    assert chat.kv_cache is reply.kv_cache
    taken = chat.pop()[0]
    assert chat.append(msg=taken) is taken is chat[-1]
    copied, other = chat.append(msg=taken), ChatHistory(model).append(msg=taken)
    assert copied is not taken and copied.text == other.text == taken.text and copied.role == other.role == "bot"
    assert copied.start_token > taken.start_token
    assert other.start_token == 0


def test_a_reply_that_is_still_written_gives_what_it_has(chat: ChatHistory, model: ChatModel) -> None:
    chat.append("user", "Hello")
    reply = model.generate(chat.embed_chat()[0], max_new_tokens=6)
    assert chat.append("bot", reply).text == ""
    message = chat[-1]
    assert isinstance(message, ChatMessage)
    for piece in reply:
        message.text += piece
    assert message.text == reply.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": "cat.png"}, "image: expected text, got str: GPT-2 reads text only"),
        ({"role": "user", "msg": b"x"}, "message: expected text, got bytes: GPT-2 reads text only"),
        ({"role": "user", "msg": None}, "message: expected text, got NoneType"),
        ({"role": "user", "text": 3}, "message: expected text, got int"),
        ({"role": "judge", "msg": "x"}, "role: expected one of user, bot, assistant, system, got 'judge'"),
    ],
)
def test_what_is_no_message_is_refused_and_changes_nothing(chat: ChatHistory, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chat.append(**given)
    assert len(chat) == 5
    with pytest.raises(ConfigError, match="role"):
        chat.turn("judge")


def test_len_iter_and_items(chat: ChatHistory) -> None:
    assert len(chat) == 5 == len(list(chat))
    first, last = chat[0], chat[-1]
    assert isinstance(first, ChatMessage) and isinstance(last, ChatMessage)
    assert (first.role, first.text, last.text) == ("system", "Be kind.", "message 4")
    assert chat[1:3] == chat.messages[1:3]
    assert repr(last) == "ChatMessage('bot', 'message 4')"
    last.content = "changed"
    assert (last.content, last.text, last.type) == ("changed", "changed", "text")
    assert last.as_message() == Message("assistant", "changed")
    assert chat.as_messages()[0] == Message("system", "Be kind.")


def test_pop_takes_the_last_ones_back(chat: ChatHistory) -> None:
    assert [m.text for m in chat.pop()] == ["message 4"]
    assert [m.text for m in chat.pop(2)] == ["message 2", "message 3"]
    assert chat.pop(0) == [] and texts(chat) == ["Be kind.", "message 1"]
    for count in (3, -1):
        with pytest.raises(ConfigError, match="pop: expected 0 to 2 messages"):
            chat.pop(count)
    assert len(chat.pop(2)) == 2 and texts(chat) == []


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((0,), "1234"),
        ((2,), "s134"),
        ((-1,), "s123"),
        ((-2,), "s124"),
        ((1, 3), "s34"),
        ((1, -1), "s4"),
        ((-3, -1), "s14"),
        ((-2, 0), "s12"),
        ((2, 2), "s1234"),
        ((0, 5), ""),
    ],
)
def test_remove(chat: ChatHistory, arguments: tuple[int, ...], left: str) -> None:
    chat.remove(*arguments)
    assert "".join(text[-1] if text[-1].isdigit() else "s" for text in texts(chat)) == left


@pytest.mark.parametrize("arguments", [(5,), (-6,), (3, 1), (0, 6), (0, -6)])
def test_remove_refuses_what_is_not_there(chat: ChatHistory, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="remove: expected messages from 0 to 5, got"):
        chat.remove(*arguments)
    assert len(chat) == 5


def test_del_takes_places_slices_and_messages(chat: ChatHistory) -> None:
    message = chat[2]
    assert isinstance(message, ChatMessage)
    del chat[message]
    assert texts(chat) == ["Be kind.", "message 1", "message 3", "message 4"]
    del chat[-1]
    del chat[1:]
    assert texts(chat) == ["Be kind."]
    with pytest.raises(ValueError, match="not in list"):
        del chat[message]
    with pytest.raises(IndexError):
        del chat[7]
    for ask in (lambda: message.start_token, lambda: message.num_tokens):
        with pytest.raises(ConfigError, match="expected one of this chat, got ChatMessage"):
            ask()


def test_reset_begins_anew_and_can_keep_the_last_turns(chat: ChatHistory) -> None:
    answered(chat, "Hello")
    cache = chat.kv_cache
    entry = chat.find_wrap_entry(40)
    assert entry is not None
    kept = texts(chat)[entry:]
    chat.reset(wrap_tokens=40)
    assert texts(chat) == ["Be kind.", *kept] and kept[-2] == "Hello"
    chat.reset()
    assert texts(chat) == ["Be kind."] and chat.kv_cache is cache
    chat.reset(add_system_prompt=False, use_cache=False)
    assert (len(chat), chat.kv_cache) == (0, None)
    added = chat.add_system_prompt()
    assert added is chat[0] and added is not None and added.role == "system"


def test_the_system_prompt_can_be_set(chat: ChatHistory, model: ChatModel) -> None:
    chat.system_prompt = "Be kind."
    assert len(chat) == 5
    chat.system_prompt = None
    assert (len(chat), chat.system_prompt) == (5, "Be kind.")
    chat.system_prompt = "Be brief."
    assert texts(chat) == ["Be brief."]
    with pytest.raises(ConfigError, match="expected text, got int"):
        chat.system_prompt = 5
    assert chat.system_prompt == "Be brief."
    chat.system_prompt = ""
    assert texts(chat) == [] and ChatHistory(model).add_system_prompt() is None


def test_whose_turn_it_is(model: ChatModel) -> None:
    chat = ChatHistory(model)
    expected = [("", "user system"), ("system", "user"), ("user", "bot"), ("bot", "user"), ("user", "bot")]
    for role, turns in expected:
        if role:
            chat.append(role, "x")
        assert {name for name in ("user", "bot", "system") if chat.turn(name)} == set(turns.split())
        assert chat.turn("assistant") == chat.turn("bot")
        assert chat.turn() == chat.turn("user")


def test_lists_and_pages(chat: ChatHistory) -> None:
    chat.append("user", "<b>\"1\" & '2'</b>\nnext")
    shown = chat.to_list()
    assert json.loads(json.dumps(shown)) == shown
    assert [row["role"] for row in shown] == ["system", "user", "bot", "user", "bot", "user"]
    assert shown[-1]["text"] == "<b>\"1\" & '2'</b>\nnext"
    page = chat.to_html()
    assert page[:-1] == shown[:-1]
    assert page[-1] == {"role": "user", "text": "&lt;b&gt;&quot;1&quot; &amp; &#x27;2&#x27;&lt;/b&gt;<br/>next"}


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chat", "few-shot", "alpaca", "llama-2", "dialogpt", "vicuna-v1", "gemma"])
def test_tokens_are_those_of_the_rendering_and_add_up(model: ChatModel, tokenizer: Tokenizer, template: str) -> None:
    chat = ChatHistory(model, template, system_prompt="Be kind.")
    for role, text in (("user", "Hi 猫"), ("bot", "Yes."), ("user", "Why so?"), ("bot", "For no reason.")):
        chat.append(role, text)
        messages, marks = chat.as_messages(), TEMPLATES[template]
        waits = role == "user"
        ids = render_prompt(messages, marks, tokenizer) if waits else list(render(messages, marks, tokenizer).ids)
        assert chat.num_tokens == len(ids)
        assert chat.embed_chat(use_cache=False) == (ids, 0)
        sizes = [message.num_tokens for message in chat]
        assert [message.start_token for message in chat] == [sum(sizes[:at]) for at in range(len(sizes))]
        assert sum(sizes) <= len(ids) if waits else sum(sizes) == len(ids)
        assert chat.messages[-1].start_token == chat.length_before(chat.messages[-1])


def test_embedding_with_and_without_the_cache(chat: ChatHistory) -> None:
    first = answered(chat, "Hello")
    assert chat.kv_cache is not None and len(chat.kv_cache) > 0
    assert all(message.cached for message in list(chat)[:6])
    chat.append("user", "And now?")
    assert not chat.messages[-1].cached
    held = chat.kv_cache.ids
    rest, position = chat.embed_chat()
    assert 0 < position <= len(held)
    cached = chat.model.generate(rest, kv_cache=chat.kv_cache, max_new_tokens=5)
    cached.wait()
    whole, nothing = chat.embed_chat(use_cache=False)
    assert (nothing, chat.kv_cache) == (0, None)
    assert held[:position] + rest == whole
    fresh = chat.model.generate(whole, max_new_tokens=5)
    assert fresh.wait() == cached.text
    assert (cached.usage.cached_tokens, fresh.usage.cached_tokens) == (position, 0)
    assert first


def test_the_lead_of_the_template_is_not_a_part_of_the_answer(chat: ChatHistory) -> None:
    chat.append("user", "Hello")
    prompt, _ = chat.embed_chat()
    assert prompt.lead == " "
    seen, plain = (chat.model.generate(ids, max_new_tokens=5).wait() for ids in (prompt, list(prompt)))
    assert seen == plain.removeprefix(" ")


@pytest.mark.parametrize(("most", "wrap"), [(60, None), (60, 40), (100, 30), (40, 90)])
def test_a_long_chat_loses_whole_oldest_turns_and_never_the_system_prompt(
    model: ChatModel, most: int, wrap: int | None
) -> None:
    chat = ChatHistory(model, system_prompt="Be kind.")
    for number in range(30):
        chat.append("user", f"question {number}")
        before = texts(chat)
        ids, _ = chat.embed_chat(max_tokens=most, wrap_tokens=wrap)
        after = texts(chat)
        assert len(ids) == chat.num_tokens <= most
        assert after[0] == "Be kind." and after[-1] == f"question {number}"
        assert after[1:] == before[len(before) - len(after) + 1 :]
        assert chat.messages[1].role == "user"
        if after != before and wrap:
            assert chat.num_tokens <= min(most, wrap)
        chat.append("bot", f"answer {number}")
    assert 2 < len(chat) < 20


def test_a_last_turn_that_is_longer_than_the_wrap_may_have_all_the_room(chat: ChatHistory) -> None:
    for _ in range(5):
        chat.append("user", "word " * 18)
        chat.append("bot", "Yes.")
    chat.append("user", "word " * 30)
    assert len(chat.embed_chat(max_tokens=60, wrap_tokens=20)[0]) <= 60
    assert texts(chat) == ["Be kind.", "word " * 30]
    with pytest.raises(ContextError, match="shorten it"):
        chat.embed_chat(max_tokens=20)
    assert len(chat) == 2


def test_a_system_message_in_the_middle_survives_once(model: ChatModel) -> None:
    chat = ChatHistory(model)
    for role, text in zip(("user", "bot", "user", "bot", "system", "user", "bot", "user"), "abcdefgh", strict=True):
        chat.append(role, text)
    chat.embed_chat(max_tokens=chat.num_tokens - 1)
    assert texts(chat) == list("ecdfgh")


def test_where_the_last_turns_begin(chat: ChatHistory) -> None:
    assert chat.find_wrap_entry(10_000) == 1
    assert chat.find_wrap_entry(0) is None
    sizes = {entry: chat.find_wrap_entry(entry) for entry in range(1, 60)}
    found = [entry for entry in sizes.values() if entry is not None]
    assert set(found) == {1, 3} and found == sorted(found, reverse=True)


def test_without_room_for_an_answer_the_default_keeps_some(model: ChatModel) -> None:
    chat = ChatHistory(model)
    for number in range(40):
        answered(chat, f"question {number}", max_new_tokens=16)
        assert chat.kv_cache is not None and len(chat.kv_cache) <= 128


# -- the cache -----------------------------------------------------------------------------------------------------


def test_the_cache_forgets_from_a_place_on(chat: ChatHistory) -> None:
    answered(chat, "Hello")
    cache = chat.kv_cache
    assert cache is not None
    ids = cache.ids
    assert len(ids) == len(cache) == cache.num_tokens
    cache.pop(3)
    assert cache.ids == ids[:-3]
    cache.remove(5, 7)
    assert cache.ids == ids[:5]
    cache.remove(9)
    cache.pop(0)
    assert cache.ids == ids[:5]
    assert cache.keep([*ids[:4], 1, 2]) == 4 and cache.ids == ids[:4]
    assert cache.keep(ids[:3]) == 2  # the last one is computed: its logits are wanted
    cache.pop(99)
    assert (cache.ids, len(cache)) == ([], 0)
    reply = chat.model.generate(ids[:6], kv_cache=cache, max_new_tokens=3)
    assert reply.wait() == chat.model.generate(ids[:6], max_new_tokens=3).wait()
    assert reply.kv_cache is cache and cache.ids[:6] == ids[:6]


# -- the model -----------------------------------------------------------------------------------------------------


def test_texts_and_ids_can_be_written_on(model: ChatModel, tokenizer: Tokenizer) -> None:
    ids = model.embed_text("Once upon<|endoftext|>")
    assert tokenizer.end_id not in ids and tokenizer.decode(ids) == "Once upon<|endoftext|>"
    whole = model.generate("Once upon", streaming=False, max_new_tokens=8)
    assert (whole.eos, len(whole.tokens), whole.finish_reason) == (True, 8, "length")
    assert model.generate(model.embed_text("Once upon"), max_new_tokens=8).wait() == str(whole)
    first = whole.tokens[3]
    cut = model.generate("Once upon", max_new_tokens=8, stop_tokens=[first, "zzz"])
    cut.wait()
    assert (cut.finish_reason, cut.tokens) == ("stop", whole.tokens[: whole.tokens.index(first)])
    for stops in (first, [first]):
        assert model.generate("Once upon", max_new_tokens=8, stop_tokens=stops).wait() == cut.text
    letter = whole.text[2]
    assert model.generate("Once upon", stop_tokens=letter, max_new_tokens=8).wait() == whole.text.split(letter)[0]
    with pytest.raises(ConfigError, match="stop_tokens: expected texts and ids, got 1.5"):
        model.generate("Once upon", stop_tokens=[1.5])  # type: ignore[list-item]


def test_drawing_follows_the_options(model: ChatModel) -> None:
    def say(**options: Any) -> str:
        return model.generate("Once", max_new_tokens=8, **options).wait()

    assert say() == say(temperature=3.0) == say(seed=5)
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0}
    assert say(seed=5, **drawn) == say(seed=5, **drawn) != say(seed=6, **drawn)
    with pytest.raises(ConfigError, match="temperature"):
        say(do_sample=True, temperature=-1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"api": "mlc"}, "api: expected one of auto, torch, hf, got 'mlc'"),
        ({"api": "awq"}, "api: expected one of"),
        ({"quantization": "q3"}, "quantize: expected one of auto, none, int8, int4, got 'q3'"),
        ({"vision_model": "clip"}, "vision_model: GPT-2 reads text only"),
    ],
)
def test_other_programs_and_pictures_are_refused(tiny_checkpoint: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ChatModel.from_pretrained(tiny_checkpoint, **options)


# -- templates -----------------------------------------------------------------------------------------------------

FIELDS = {"user": "Q: ${MESSAGE}\n", "bot": "A: ${MESSAGE}</s>", "stop": ["\nQ:"]}


def test_templates_by_name_fields_and_file(model: ChatModel, tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(FIELDS), "utf-8")
    shown = [ChatHistory(model, given) for given in (FIELDS, path, str(path))]
    for chat in shown:
        chat.append("user", "Why?")
        assert tokenizer.decode(chat.embed_chat()[0]) == "Q: Why?\nA:"
        assert chat.template.stop == ("\nQ:",)
    assert ChatHistory(model).template == ChatHistory(model, "chat").template == CHAT
    assert ChatHistory(model, TEMPLATES["gemma"]).template == ChatHistory(model, "gemma").template


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("morse", "template: expected one of chat"),
        ("none.json", "template: none.json: cannot be read"),
        ({"user": "no place"}, "expected text with one"),
        ({"colour": "red"}, "found 'colour'"),
        (5, "chat_template: expected a name, a JSON file or fields, got int"),
        (["chat"], "chat_template: expected a name, a JSON file or fields, got list"),
        ("chatml", "train it first"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(model: ChatModel, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ChatHistory(model, given)
