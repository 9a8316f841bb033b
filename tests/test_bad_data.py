"""Every form, damaged in every way: a file is read whole, or refused with its name; never a traceback."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat.errors import ConfigError, DataError
from gpt2chat.formats import FORMATS, Library, Source
from gpt2chat.records import Report

PAIRS = [(f"Question {n}, or so?", f'Answer "{n}" é.') for n in range(20)]


def chat(question: str, answer: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: names[0], content: question}, {role: names[1], content: answer}]


def lines(rows: list[object]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


GOOD: dict[str, str] = {
    "pairs.json": json.dumps([{"user": q, "bot": a} for q, a in PAIRS], ensure_ascii=False, indent=1),
    "pairs.jsonl": lines([{"question": q, "answer": a} for q, a in PAIRS]),
    "messages.jsonl": lines([{"messages": chat(q, a)} for q, a in PAIRS]),
    "sharegpt.json": json.dumps([{"conversations": chat(q, a, "from", "value")} for q, a in PAIRS], ensure_ascii=False),
    "alpaca.json": json.dumps([{"instruction": q, "input": "", "output": a} for q, a in PAIRS], ensure_ascii=False),
    "completion.jsonl": lines([{"prompt": q, "completion": a} for q, a in PAIRS]),
    "text.jsonl": lines([{"text": f"{q} {a}"} for q, a in PAIRS]),
    "faq.csv": "user,bot\n" + "".join(f'"{q}","{a.replace(chr(34), chr(34) * 2)}"\n' for q, a in PAIRS),
    "faq.tsv": "user\tbot\n" + "".join(f"{q}\t{a.replace(chr(34), chr(39))}\n" for q, a in PAIRS),
    "talk.txt": "\n".join(f"User: {q}\nBot: {a}\n" for q, a in PAIRS),
    "chatml.txt": "\n".join(
        f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for q, a in PAIRS
    ),
    "story.md": "".join(f"# {q}\n\n{a}\n\n" for q, a in PAIRS),
}
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "line ends of Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "blank lines around": lambda data: data + b"\n\n\n",
    "gzip": gzip.compress,
    "xz": lzma.compress,
}
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "a half of it": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data.rstrip()[:-1],
    "cp1252": lambda data: data.decode().encode("cp1252"),
    "a byte of none": lambda data: data[:100] + b"\xff" + data[100:],
    "NUL bytes": lambda data: data[:100] + b"\0\0" + data[100:],
    "end token": lambda data: data.replace(b"so?", b"so?<|endoftext|>", 1),
    "UTF-16 of odd length": lambda data: data.decode().encode("utf-16")[:-1],
    "gzip cut short": lambda data: gzip.compress(data)[:-9],
    "xz cut short": lambda data: lzma.compress(data)[:-9],
    "empty": lambda data: b"",
    "blank": lambda data: b" \n\t\r\n",
    "random": lambda data: bytes(range(256)) * 4,
    "an answer less": lambda data: data.replace(b"Answer", b"", 1),
}


# What no reader can know to be damaged.
READ_ALL_THE_SAME = {
    "an answer less": tuple(GOOD),
    "NUL bytes": ("faq.csv", "faq.tsv", "talk.txt", "story.md"),
    "without its last byte": ("faq.tsv", "talk.txt", "story.md"),
    "a half of it": ("talk.txt", "story.md"),
}


def read(path: Path, wanted: str | None = None) -> Library:
    library = Library(Report(), wanted)
    library.add(Source(path))
    return library


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("change", WHOLE)
def test_what_is_only_packed_otherwise_is_read_whole(name: str, change: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WHOLE[change](GOOD[name].encode()))
    library = read(tmp_path / name)
    assert len(library.conversations) + len(library.texts) == (1 if name == "story.md" else 20)
    assert not library.report.found


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("change", DAMAGED)
def test_what_is_damaged_is_refused_with_its_name_or_read_with_a_word(name: str, change: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[change](GOOD[name].encode()))
    try:
        library = read(path)
    except DataError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return
    assert name in READ_ALL_THE_SAME.get(change, ()), library.found
    if change == "NUL bytes":
        assert "with NUL characters" in library.report.lines()[0]


@given(
    data=st.binary(max_size=120), name=st.sampled_from(["a.json", "a.csv", "a.txt"]), wanted=st.sampled_from(FORMATS)
)
def test_any_bytes_in_any_form_are_records_or_a_known_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, wanted: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    for form in (None, wanted):
        try:
            read(path, form)
        except (DataError, ConfigError) as error:
            assert path.name in str(error)


@given(
    text=st.text(st.sampled_from('{}[]",:\\ \nuserbotaé1.5e-ntf<|im_start|>;\t'), max_size=80),
    begins=st.sampled_from(
        ["", "[", '{"user": ', '[{"user": "a", "bot": ', "user,bot\n", "User: ", "<|im_start|>user\n"]
    ),
)
def test_text_that_looks_like_a_form_is_records_or_a_known_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, begins: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "near.txt"
    path.write_text(begins + text, "utf-8")
    try:
        read(path)
    except DataError as error:
        assert path.name in str(error)
