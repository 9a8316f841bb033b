"""Ways to write a chat: what turns look like, files of templates, and tokens that a template adds to the vocabulary."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import ROOT, invoke, pairs, same_weights, save_tiny, signals_in_step
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import checkpoint, packs
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Message, render, render_many, render_prompt
from gpt2chat.decoding import choose, open_model, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.errors import CheckpointError, ConfigError
from gpt2chat.generation import Decoder, stream_answer
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.offline import Setting
from gpt2chat.pretrained import load
from gpt2chat.runtime import NativeRuntime, TorchRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.templates import ALIASES, TEMPLATES, Template, template_named
from gpt2chat.tokenizer import Tokenizer

CHATML = TEMPLATES["chatml"]
DOCUMENT = (ROOT / "docs" / "templates.md").read_text("utf-8")
TALK = [
    Message("system", "S"),
    Message("user", "Q1"),
    Message("assistant", "A1"),
    Message("user", "Q2"),
    Message("assistant", "A2"),
]
# What TALK is in letters; control tokens are spelled in angle brackets without bars: <end>, <im_start>, <im_end>.
WRITTEN = {
    "llama-2": "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST] A1<end>[INST] Q2 [/INST] A2<end>",
    "vicuna-v0": "S\n\n### Human: Q1\n### Assistant: A1<end>### Human: Q2\n### Assistant: A2<end>",
    "vicuna-v1": "S\n\nUSER: Q1\nASSISTANT: A1<end>USER: Q2\nASSISTANT: A2<end>",
    "stablelm-zephyr": "<|system|>\nS<end>\n<|user|>\nQ1<end>\n<|assistant|>\nA1<end>\n"
    "<|user|>\nQ2<end>\n<|assistant|>\nA2<end>\n",
    "sheared-llama": "S\n\n### Input:\nQ1\n\n### Response:A1<end>### Input:\nQ2\n\n### Response:A2<end>",
    "nous-obsidian": "<|im_start|>system\nS\n###\n<|im_start|>user\nQ1\n###\n<|im_start|>assistant\nA1<end>"
    "<|im_start|>user\nQ2\n###\n<|im_start|>assistant\nA2<end>",
    "phi-2-chat": "S\n\nAlice: Q1\nBob: A1<end>\nAlice: Q2\nBob: A2<end>\n",
    "phi-2-instruct": "S\n\nInstruct: Q1\nOutput: A1<end>\nInstruct: Q2\nOutput: A2<end>\n",
    "gemma": "S\n\n<start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end>"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\nA2<end>",
    "chatml": "<im_start>system\nS<im_end>\n<im_start>user\nQ1<im_end>\n<im_start>assistant\nA1<im_end>\n"
    "<im_start>user\nQ2<im_end>\n<im_start>assistant\nA2<im_end>\n",
}
CONTROLS = {50256: "<end>", 50257: "<im_start>", 50258: "<im_end>"}
SPELLINGS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(t.user_prefix for t in TEMPLATES.values())]
TEXT = st.lists(st.sampled_from([s for s in SPELLINGS if s]) | st.text(max_size=8), max_size=4).map("".join)
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())


def spelled(ids: Any, tokenizer: Tokenizer) -> str:
    """The letters of ids, control tokens as in WRITTEN; a letter of several tokens is never cut here."""
    return "".join(CONTROLS[i] if i in CONTROLS else tokenizer.decode([i]) for i in ids)


# -- how turns look ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITTEN, *ALIASES])
def test_turns_look_as_the_name_promises(tokenizer: Tokenizer, name: str) -> None:
    template = template_named(name)
    written = WRITTEN[template.name]
    assert spelled(render(TALK, template, tokenizer).ids, tokenizer) == written
    assert spelled(render_many([TALK], template, tokenizer)[0].ids, tokenizer) == written
    prompt = spelled(render_prompt(TALK[:-1], template, tokenizer), tokenizer)
    assert written.startswith(prompt) and written[len(prompt) :].lstrip().startswith("A2")


def test_every_name_asked_for_is_there() -> None:
    assert set(WRITTEN) <= set(TEMPLATES)
    assert template_named("chat-ml") is CHATML
    with pytest.raises(ConfigError) as caught:
        template_named("chatty")
    assert all(name in str(caught.value) for name in [*TEMPLATES, *ALIASES, "'chatty'"])


@every_template
@given(system=TEXT, question=TEXT, answer=TEXT)
def test_no_text_spells_a_control_token(
    tokenizer: Tokenizer, template: Template, system: str, question: str, answer: str
) -> None:
    def controls(*contents: str) -> list[int]:
        talk = [Message(role, text) for role, text in zip(("system", "user", "assistant"), contents, strict=True)]
        one, many = render(talk, template, tokenizer).ids, render_many([talk, talk], template, tokenizer)
        assert [list(example.ids) for example in many] == [list(one)] * 2
        return [token for token in one if token >= tokenizer.end_id]

    assert controls(system, question, answer) == controls("s", "q", "a")


@every_template
def test_a_template_that_can_be_taught_ends_answers_with_a_control_token(
    tokenizer: Tokenizer, template: Template
) -> None:
    example = render(TALK, template, tokenizer)
    taught = [token for token, learnt in zip(example.ids, example.loss_mask, strict=True) if learnt]
    assert template.trainable == (taught[-1] in tokenizer.stop_ids)
    assert template.trainable or template.name == "few-shot"


def test_only_the_first_question_follows_the_system_message(tokenizer: Tokenizer) -> None:
    llama = TEMPLATES["llama-2"]
    asked = [Message("user", "Q")]
    assert tokenizer.decode(render_prompt(asked, llama, tokenizer)) == "[INST] Q [/INST]"
    conversations = [[Message("system", "S")], asked, [Message("system", "S"), Message("assistant", "A"), *asked]]
    texts = [tokenizer.decode(example.ids) for example in render_many(conversations, llama, tokenizer)]
    assert texts[1] == "[INST] Q [/INST]"  # the conversation before it ended with a system message
    assert texts[2].endswith("A<|endoftext|>[INST] Q [/INST]")


# -- plain data ----------------------------------------------------------------------------------------------------


@every_template
def test_a_template_survives_json(template: Template, tmp_path: Path) -> None:
    data = json.loads(json.dumps(template.to_dict()))
    assert Template.from_dict(data) == template
    (tmp_path / "own.json").write_text(json.dumps(data), "utf-8")
    assert template_named(str(tmp_path / "own.json")) == template


def test_a_checkpoint_of_before_the_younger_fields_loads(tmp_path: Path) -> None:
    path, old = save_tiny(tmp_path / "new.pt"), tmp_path / "old.pt"
    content = torch.load(path, weights_only=True)
    younger = {"first_user_prefix", "added"}
    content["template"] = {name: value for name, value in content["template"].items() if name not in younger}
    assert len(content["template"]) == 9
    torch.save(content, old)
    assert checkpoint.load(old).template == TEMPLATES["chat"]
    content["template"]["colour"] = "red"
    torch.save(content, old)
    with pytest.raises(CheckpointError, match="colour"):
        checkpoint.load(old)


def file(folder: Path, content: object) -> str:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


def test_a_file_may_name_only_some_of_our_fields(tmp_path: Path) -> None:
    found = template_named(
        file(tmp_path, {"user_prefix": "Q: ", "assistant_prefix": "A:", "lead": " ", "stop": "\nQ:"})
    )
    assert found == Template("mine", "", "\n\n", "Q: ", "\n", "A:", "<|endoftext|>", " ", ("\nQ:",))
    assert found.trainable


def test_a_file_without_the_ending_of_json_is_read_where_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "turns").write_text('{"user_prefix": "Q: "}', "utf-8-sig")
    assert template_named(str(tmp_path / "turns")).user_prefix == "Q: "


def test_a_file_of_nanollms_form_says_the_same_as_ours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    llama = {
        "system_prompt": "Answer politely.",
        "system": "<s>[INST] <<SYS>>\n${MESSAGE}\n<</SYS>>\n\n",
        "first": "${MESSAGE} [/INST]",
        "user": "<s>[INST] ${MESSAGE} [/INST]",
        "bot": " ${MESSAGE}</s>",
    }
    ids = render(TALK, template_named(file(tmp_path, llama)), tokenizer).ids
    assert ids == render(TALK, TEMPLATES["llama-2"], tokenizer).ids
    phi = {
        "system": "${MESSAGE}\n\n",
        "user": "Alice: ${MESSAGE}\nBob: ",
        "bot": "${MESSAGE}</s>\n",
        "stop": "\nAlice:",
    }
    found = template_named(file(tmp_path, phi))
    assert (found.user_suffix, found.assistant_prefix, found.stop) == ("\nBob: ", "", ("\nAlice:",))
    assert spelled(render(TALK, found, tokenizer).ids, tokenizer) == WRITTEN["phi-2-chat"]
    own = {"user": "<a>${MESSAGE}<b>", "bot": "${MESSAGE}<b>", "added": ["<a>", "<b>"], "name": "ab"}
    found = template_named(file(tmp_path, own))
    assert (found.name, found.trainable, found.added) == ("ab", True, ("<a>", "<b>"))
    assert [i for i in render(TALK[1:3], found, tokenizer).ids if i >= 50256] == [50257, 50258, 50258]


NANO = {"user": "U: ${MESSAGE}\n", "bot": "B: ${MESSAGE}</s>"}
FAULTS: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "expected JSON"),
    "nothing": ("", "expected JSON"),
    "deep": ("[" * 100_000, "expected JSON"),
    "a list": ([1], r"expected a JSON object.*found \[1\]"),
    "no fields": ({}, "expected a JSON object with fields"),
    "an unknown field": ({"user_prefix": "", "colour": 1}, "expected name, .*found 'colour'"),
    "both forms": ({**NANO, "user_prefix": ""}, "expected only system, .*found 'user_prefix'"),
    "a number": ({"user_prefix": 1}, "expected text in 'user_prefix', got 1"),
    "a stop of numbers": ({"stop": [1], "lead": ""}, r"list of texts in 'stop', got \[1\]"),
    "no user": ({"bot": "${MESSAGE}"}, r"one \$\{MESSAGE\} in 'user', found none"),
    "no message": ({**NANO, "bot": "B: "}, r"one \$\{MESSAGE\} in 'bot', found 'B: '"),
    "two messages": ({**NANO, "system": "${MESSAGE}${MESSAGE}"}, r"one \$\{MESSAGE\} in 'system'"),
    "a first turn of another end": ({**NANO, "first": "${MESSAGE}!"}, "'first' to end as 'user' does"),
    "a system prompt of numbers": ({**NANO, "system_prompt": 3}, "text in 'system_prompt', found 3"),
    "a name of numbers": ({**NANO, "name": 3}, "text in 'name', got 3"),
    "a mark twice": ({**NANO, "added": ["<a>", "<a>"]}, "different marks .* in 'added'"),
    "the end token again": ({**NANO, "added": ["<|endoftext|>"]}, "different marks .* in 'added'"),
    "an empty mark": ({**NANO, "added": [""]}, "different marks .* in 'added'"),
    "too many marks": ({**NANO, "added": [f"<{n}>" for n in range(65)]}, "up to 64"),
}


@pytest.mark.parametrize(("content", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_a_file_is_one_line_with_its_place(content: object, said: str, tmp_path: Path) -> None:
    path = file(tmp_path, content)
    with pytest.raises(ConfigError, match=said) as caught:
        template_named(path)
    assert str(caught.value).startswith(f"template: {path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing.json: cannot be read: No such file"):
        template_named(str(tmp_path / "missing.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="folder.json: cannot be read"):
        template_named(str(tmp_path / "folder.json"))
    (tmp_path / "latin.json").write_bytes(b'{"lead": "\xe9"}')
    with pytest.raises(ConfigError, match="latin.json: cannot be read: expected UTF-8"):
        template_named(str(tmp_path / "latin.json"))
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="expected one of chat"):
            template_named(name)


# -- tokens of their own -------------------------------------------------------------------------------------------


def grown(seed: int = 0) -> Checkpoint:
    """A tiny model that has been given ChatML's tokens, with answers that differ from place to place."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=50257)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.detach() for name, tensor in GPT2(config).init_weights(seed).state_dict().items()}
    weights = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    return Checkpoint(config, weights, CHATML).with_ids(50259)


def test_rows_are_added_near_the_mean_the_same_each_time() -> None:
    one, two = grown(), grown()
    wte = one.weights["wte.weight"]
    assert wte.shape == (50259, 32)
    assert one.config.vocab_size == 50259
    assert torch.equal(wte, two.weights["wte.weight"])
    mean = wte[:50257].double().mean(0)
    assert (wte[50257:].double() - mean).abs().max() < 1e-3
    assert not torch.equal(wte[50257], wte[50258])
    assert torch.equal(one.build_model().state_dict()["wte.weight"], wte)
    assert one.with_ids(50259) is one


def test_a_head_of_its_own_grows_too() -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_ctx=16, vocab_size=100, tie_word_embeddings=False)
    weights = {n: t.detach().bfloat16() for n, t in GPT2(config).init_weights(0).state_dict().items()}
    larger = Checkpoint(config, weights, TEMPLATES["chat"]).with_ids(103)
    assert larger.weights["lm_head.weight"].shape == larger.weights["wte.weight"].shape == (103, 16)
    assert larger.weights["wte.weight"].dtype == torch.bfloat16
    assert torch.equal(larger.weights["lm_head.weight"][:100], weights["lm_head.weight"])


def test_a_vocabulary_without_room_is_refused(tmp_path: Path) -> None:
    whole = grown()
    checkpoint.save(whole, tmp_path / "grown.pt")
    content = torch.load(tmp_path / "grown.pt", weights_only=True)
    content["weights"]["wte.weight"] = content["weights"]["wte.weight"][:50257].clone()
    content["config"]["vocab_size"] = 50257
    torch.save(content, tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="template chatml: expected 50259 ids, .*im_end.* found 50257"):
        checkpoint.load(tmp_path / "small.pt")
    loaded = checkpoint.load(save_tiny(tmp_path / "tiny.pt"))
    with pytest.raises(CheckpointError, match="not written: template chatml"):
        checkpoint.save(Checkpoint(loaded.config, loaded.weights, CHATML), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="50259 ids; this one has 50257: .*train --template chatml"):
        Setting(loaded, CHATML, GenerationConfig(), "tiny")
    for command in (["chat", tmp_path / "tiny.pt", "-p", "hi"], ["generate", "--model", tmp_path / "tiny.pt", "hi"]):
        result = invoke(*command, "--chat-template", "chat-ml")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "train --template chatml" in result.stderr


def test_added_ids_are_no_text(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream_decoder()
    assert [stream.push(token) for token in (40, 50257, 50258, 50320, 318)] == ["I", "", "", "", " is"]
    assert tokenizer.decode([40, 50257, 318, 50258]) == "I is"
    assert tokenizer.decode([40, 50257, 318, 50258], CHATML.added) == "I<|im_start|> is<|im_end|>"
    assert {50256, 50257, 50258} <= tokenizer.stop_ids
    assert min(tokenizer.stop_ids) == 50256


def leaning(token: int) -> Checkpoint:
    """A model that soon draws one id: its row points where the states of the others lead."""
    loaded = grown()
    weights = dict(loaded.weights)
    weights["wte.weight"] = weights["wte.weight"].clone()
    weights["wte.weight"][token] = 40 * weights["ln_f.bias"] / weights["ln_f.bias"].norm()
    return Checkpoint(loaded.config, weights, loaded.template)


@pytest.mark.parametrize("token", [50256, 50257, 50258])
def test_every_control_token_ends_an_answer(token: int, tokenizer: Tokenizer) -> None:
    loaded = leaning(token)
    decoder = Decoder(loaded.build_model().requires_grad_(False))
    config = GenerationConfig(temperature=0, max_new_tokens=40)
    for template in (CHATML, TEMPLATES["chat"]):
        "".join(stream_answer(decoder, [Message("user", "hi")], template, tokenizer, config))
        assert decoder.finish_reason == "stop"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny model after two steps with ChatML, and beside it the state to resume from."""
    folder = tmp_path_factory.mktemp("taught")
    save_tiny(folder / "tiny.pt")
    (folder / "pairs.json").write_text(pairs(6), "utf-8")
    assert train(folder, "whole.pt", "--model", folder / "tiny.pt").exit_code == 0
    return folder / "whole.pt"


def train(folder: Path, name: str, *options: object) -> Any:
    given = ("--conversation_file", folder / "pairs.json", "--save_path", folder / name, "--epochs", 2)
    resumes = "--resume" in options
    return invoke("train", *(() if resumes else (*given, "--chat_template", "chatml")), "--device", "cpu", *options)


def test_a_trained_model_keeps_its_tokens_and_answers(taught: Path, tokenizer: Tokenizer) -> None:
    loaded = checkpoint.load(taught)
    assert (loaded.config.vocab_size, loaded.template, loaded.history[-1]["step"]) == (50259, CHATML, 2)
    greedy = GenerationConfig(temperature=0, max_new_tokens=12)
    torch_answer = "".join(
        stream_answer(
            Decoder(loaded.build_model().requires_grad_(False)), [Message("user", "hi")], CHATML, tokenizer, greedy
        )
    )
    bot = GPT2Chatbot(generation=greedy, device="cpu", dtype="float32", quantize="none")
    bot.load_model(taught)
    assert bot.chat("hi") == torch_answer != ""
    assert invoke("chat", taught, "-p", "hi", "-t", 0, "--max_tokens", 4).exit_code == 0
    measured = invoke("eval", taught, "--conversation_file", taught.parent / "pairs.json", "--json")
    assert measured.exit_code == 0
    assert json.loads(measured.stdout)["conversations"]["pairs"] == 6


def test_a_resumed_run_ends_with_the_same_weights(taught: Path) -> None:
    folder = taught.parent
    with signals_in_step(1, 2):  # Ctrl-C
        assert train(folder, "cut.pt", "--model", folder / "tiny.pt").exit_code == 130
    result = train(folder, "cut.pt", "--resume", folder / "cut.last.pt")
    assert result.exit_code == 0, result.stderr
    assert checkpoint.load(folder / "cut.pt").config.vocab_size == 50259
    assert same_weights(folder / "cut.pt", taught)


def test_a_run_with_a_file_resumes_without_it(taught: Path, tmp_path: Path) -> None:
    folder = tmp_path
    shutil.copy(taught.parent / "tiny.pt", folder)
    shutil.copy(taught.parent / "pairs.json", folder)
    turns = folder / "turns.json"
    turns.write_text(json.dumps({"user": "<q>${MESSAGE}", "bot": "<a>${MESSAGE}<q>", "added": ["<q>", "<a>"]}), "utf-8")
    given = ("--model", folder / "tiny.pt", "--template", turns)
    assert train(folder, "whole.pt", *given).exit_code == 0
    with signals_in_step(1, 2):
        assert train(folder, "cut.pt", *given).exit_code == 130
    turns.unlink()
    assert train(folder, "cut.pt", "--resume", folder / "cut.last.pt").exit_code == 0
    assert same_weights(folder / "cut.pt", folder / "whole.pt")
    assert checkpoint.load(folder / "cut.pt").template.added == ("<q>", "<a>")


def test_data_is_counted_and_shown_with_added_tokens(taught: Path) -> None:
    data = taught.parent / "pairs.json"
    shown = invoke("data", "check", data, "--template", "chatml")
    assert "<|im_start|>user⏎What is number 0?<|im_end|>⏎<|im_start|>assistant⏎⟦It is 0.<|im_end|>⟧" in shown.stdout
    counted = invoke("data", "stats", data, "--template", "chatml", "--json")
    chat = invoke("data", "stats", data, "--json")
    assert json.loads(counted.stdout)["tokens"] > json.loads(chat.stdout)["tokens"]


# -- what is written about them ------------------------------------------------------------------------------------


def test_the_table_of_the_document_is_what_is_rendered(tokenizer: Tokenizer) -> None:
    table = re.search(r"```text\n(.*?)```", DOCUMENT, flags=re.S)
    assert table
    rows = dict(line.split(maxsplit=1) for line in table[1].splitlines())
    asked = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A")]
    assert rows == {
        name: tokenizer.decode(render(asked, template, tokenizer).ids, template.added).replace("\n", "⏎")
        for name, template in TEMPLATES.items()
    }


def test_the_files_of_the_document_can_be_taught(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT, flags=re.S)
    assert len(blocks) == 2
    assert all(template_named(file(tmp_path, block)).trainable for block in blocks)


# -- what runs them ------------------------------------------------------------------------------------------------


def native_runtime(loaded: Checkpoint, form: str) -> NativeRuntime:
    quantize, dtype = (form, "auto") if form.startswith("int") else ("none", form)
    runtime = runtime_of(loaded, choose("cpu", "auto" if dtype == "bfloat16" else dtype, quantize))
    if not isinstance(runtime, NativeRuntime):
        assert not shutil.which("c++")
        pytest.skip("no native decoder here")
    assert runtime.form == form
    return runtime


def asked(tokenizer: Tokenizer) -> Iterator[list[int]]:
    talk: list[Message] = []
    for question in ("hi", "and <|im_end|> now?", "bye"):
        talk.append(Message("user", question))
        yield render_prompt(talk, CHATML, tokenizer)
        talk.append(Message("assistant", "ok"))


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_a_cache_changes_no_answer_and_the_engine_gives_the_same(form: str, tokenizer: Tokenizer) -> None:
    runtime = native_runtime(grown(), form)
    config, decoder = GenerationConfig(temperature=1, seed=3, max_new_tokens=10), Decoder(runtime)
    with Engine(runtime, streams=3) as engine:
        for prompt in asked(tokenizer):
            assert 50257 in prompt and 50258 in prompt
            cached = list(decoder.generate(prompt, config, tokenizer.stop_ids))
            assert cached == list(Decoder(runtime).generate(prompt, config, tokenizer.stop_ids))
            assert cached == list(engine.submit(prompt, config, stop=tokenizer.stop_ids))
    assert decoder.cached_tokens > 0


def test_the_native_decoder_scores_added_tokens_as_torch_does(tokenizer: Tokenizer) -> None:
    loaded = grown()
    native, through_torch = native_runtime(loaded, "float32"), TorchRuntime(loaded.build_model().requires_grad_(False))
    for prompt in asked(tokenizer):
        one = native.forward(prompt, native.new_cache(), len(prompt))
        other = through_torch.forward(prompt, through_torch.new_cache(), len(prompt))
        assert one.shape == other.shape == (len(prompt), 50259)
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


def test_packed_weights_keep_the_template(taught: Path) -> None:
    choice = choose("cpu", "auto", "int8")
    if choice.kernel is None:
        pytest.skip("no native decoder here")
    for _ in range(2):  # made, then read
        loaded, runtime = open_model(str(taught), choice, load)
        assert (loaded.template, runtime.config.vocab_size) == (CHATML, 50259)
    assert list(packs.places(taught, "int8", beside=True))[0].exists()
