"""Build the pretraining corpus of the demo chat model from a folder of open datasets.

Reads dialogues, question-answer pairs and plain texts, cleans them, encodes them with GPT-2's byte-pair
encoding and writes `train.bin` and `heldout.bin` (uint16 ids), their `.idx` (int64 document offsets) and
`manifest.json`.
"""

from __future__ import annotations

import html
import json
import lzma
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from generate import Generator

from gpt2chat.conversation import Message, render
from gpt2chat.templates import TEMPLATES
from gpt2chat.tokenizer import Tokenizer

HERE = Path(__file__).parent
SEED = 0
MAX_DOCUMENT = 480  # tokens of one conversation
MAX_PAIR = 300  # tokens of one question and its answer
BOOK_MIN, BOOK_MAX = 1300, 2100  # characters of a run of paragraphs: about 300 to 500 tokens
HELDOUT_SHARE, HELDOUT_MAX = 0.01, 200

Unit = tuple[Message, ...] | str
Encode = Callable[[Unit], list[int]]


@dataclass(frozen=True)
class Source:
    """One dataset: where its files are, under which licence, and how much of it goes into the mix."""

    name: str
    path: str
    kind: str
    licence: str
    origin: str
    repeats: float  # in the long run; below 1, that share of the documents
    closing: float  # in the closing run, in which the rate of learning falls and the mix is what the model is for
    cap: int | None = None  # tokens before repeats


OURS, MADE = "gpt2chat contributors", 40_000  # who wrote the texts in data/; how many conversations patterns give
SOURCES = (
    Source("written-dialogues", "dialogues/*.txt", "written", "MIT", OURS, 5, 5),
    Source("written-answers", "answers/*.txt", "rows", "MIT", OURS, 6, 6),
    Source("made-dialogues", "patterns", "made", "MIT", OURS, 1, 0.5),
    Source("self-dialogue", "self-dialogue-corpus/*.jsonl.xz", "dialogues", "BSD-3-Clause",
           "github.com/jfainberg/self_dialogue_corpus @ 113a1b0f (Fainberg et al., arXiv 1809.06641)", 0.5, 0.03),
    Source("topical-chat", "topical-chat/*.jsonl.xz", "dialogues", "CDLA-Sharing-1.0",
           "github.com/alexa/Topical-Chat @ 7c939229, valid and test conversations", 0.5, 0),
    Source("taskmaster-4", "taskmaster-4/*.jsonl.xz", "dialogues", "CC-BY-4.0",
           "github.com/google-research-datasets/Taskmaster @ d92cb6af, TM-4-2024 (Byrne, Ganesh, Google)", 1, 0.2),
    Source("tinytalks", "tinytalks/pairs.json", "pairs", "CC-BY-4.0",
           "github.com/MLSysBook/TinyTorch @ 02364f80, datasets/tinytalks (TinyTorch Contributors)", 4, 1),
    Source("chatterbot", "chatterbot-corpus-english/pairs.json", "pairs", "BSD-3-Clause",
           "github.com/gunthercox/chatterbot-corpus @ a01efece (Copyright 2017 Gunther Cox)", 1, 0),
    Source("llms-from-scratch", "llms-from-scratch-instructions/pairs.json", "instructions", "Apache-2.0",
           "github.com/rasbt/LLMs-from-scratch @ 28c65cdf, ch07 (copyright Sebastian Raschka)", 2, 1),
    Source("alpaca-demo", "llama-factory-demo/pairs-alpaca_en_demo.json", "instructions", "Apache-2.0",
           "github.com/hiyouga/LLaMA-Factory @ ff6d4d12, data/alpaca_en_demo.json", 2, 0.5),
    Source("tinystories", "text/tinystories-sample.txt.xz", "stories", "CDLA-Sharing-1.0",
           "TinyStories, a sample", 1, 0.1),
    Source("storybooks", "text/storybooks-asp-pb.txt", "stories", "CC-BY / public domain",
           "global-asp/asp-source and global-asp/pb-source, English", 1, 0.2),
    Source("aesop", "text/aesop-for-children.txt", "stories", "public domain", "The Aesop for Children", 1, 0.2),
    Source("wikinews", "text/wikinews-en.txt.xz", "news", "CC-BY-2.5", "Wikinews, English", 0.3, 0.02, 3_000_000),
    Source("classic-books", "text/classic-books.txt.xz", "books", "public domain",
           "185 classic books", 0.3, 0.02, 4_000_000),
)  # fmt: skip

QUOTES = str.maketrans(
    dict.fromkeys("‘’‚′´`ʻ", "'")
    | dict.fromkeys("“”„″", '"')
    | {"…": "...", "\xa0": " "}
    | dict.fromkeys("\ufeff\u200b\u200e\u00ad\r", "")
)
REJECT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]|[ÃÂ][\x80-\xbf]|â€|ã")
WEB = re.compile(r"https?:|www\.|\.(?:com|org|net)\b|</?\w+/?>|&\w+;|[\\\[\]{}|@~^_=]|[^\x00-\u024f]")
TYPOS = [(re.compile(pattern), fix) for pattern, fix in (
    (r"\s+([.,!?;:])(?=\s|$)", r"\1"), (r"([!?])[.,]+", r"\1"), (r"([!?,])\1+", r"\1"),
    (r"(?<!\.)\.\.(?!\.)", "."), (r"\.{4,}", "..."), (r"(?<=[a-z]),(?=[A-Za-z])", ", "),
    (r"(?<=[a-z]{2}[.!?])(?=[A-Z][a-z])", " "), (r"\bi(?=\s|$|[,.!?]|'(?:m|ve|d|ll)\b)", "I"),
    (r"\bi'?(m|ve)\b(?!-)", r"I'\1"), (r"\bIm\b", "I'm"), (r"(?i)\b(can)t\b", r"\1't"),
    (r"(?i)\b(do|did|does|is|was|are|were|have|has|could|would|should)nt\b", r"\1n't"),
    (r"(?i)\b(that|what)s\b", r"\1's"), (r"([.!?] )([a-z])(?=[a-z']* )", lambda m: m[1] + m[2].upper()),
)]  # fmt: skip
NAMES = re.compile(r"chatterbot|vicuna|openai|chatgpt|https?:|www\.|\.(?:com|org|net)\b", re.I)
UNWANTED = {"botprofile", "coding", "gossip", "health", "politics", "sports"}  # categories of chatterbot
TOPICS = re.compile(  # kept out of chatterbot
    r"\bmy name\b|\byour name\b|\bi(?: a|')m called\b|who are you|\bcall me\b"
    r"|politic|communis|capitalis|socialis|republican|democrat|president|senator|election|\bguns?\b|abortion|nazi"
    r"|\bgods?\b|jesus|christ|bible|religio|buddh|muslim|islam|\bjew|atheis|church|heaven|\bhell\b|satan|lucifer"
    r"|\bsex|porn|naked|nude|\bgay\b|lesbian|orgasm|virgin|\bbend over\b|erotic|breast|\blaid\b"
    r"|boyfriend|girlfriend|fuck|shit|bitch|whore|suicid|pleasure|\bkill",
    re.I,
)
HOLES = re.compile(
    r"\s[,.;:)?](?:\s|$)|\(\s*[,;)]|[,;:]\s*[,;:.]|\"\s*\"|\s's\b|\s\"\s|\(\s|[,;]\s*\)"
    r"|\b(?:the|an?|of|in|by|to|and|or|with|from|at|for|that|former|between)\s*[,.;:)]"
    r"|\b(?:the|an?|their|his|its) (?:of|in|and|is|was|to|has|by|for|from|with|on|at|that|which|were|are)\b"
    r"|\b(?:the|an?|their|his|its) (?:have|had|as)\b"
    r"|\b(?:of|by|from|with|at|between|for|and) (?:of|in|by|is|was|has|were|are|and|who|to)\b"
    r"|\bin (?:in|by|of|on|and)\b",
    re.I,
)
PROSE = re.compile(r"[\"'A-Z].*[.!?][\"']?")


def normalise(text: str) -> str:
    """Straighten quotes, write dashes as ` - ` and collapse blanks; line breaks stay."""
    text = html.unescape(text).translate(QUOTES)
    text = re.sub(r"(?<=\d)–(?=\d)", "-", text)
    text = re.sub(r"[ \t]*(?:[—–]|(?<!-)--(?![->]))(?=\"(?:\s|$))", " -", text)
    text = re.sub(r"[ \t]*(?:[—–]|(?<![-<])--(?![->]))[ \t]*", " - ", text)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def tidy(text: str, close: bool) -> str:
    """Mend the spelling slips of typed chat; with `close`, end the message with a sign."""
    text = " ".join(normalise(text).split())
    for pattern, fix in TYPOS:
        text = pattern.sub(fix, text)
    text = text[:1].upper() + text[1:]
    if close and text and text[-1] not in ".!?\"')":
        text = text.rstrip(" ,;:-") + "."
    return text


def clean_dialogue(messages: Iterable[dict[str, str]]) -> list[Message]:
    """Return whole exchanges from a user's message to an answer, or nothing when a message is unfit."""
    merged: list[Message] = []
    for item in messages:
        text = tidy(item["content"], close=item["role"] == "assistant")
        if WEB.search(text) or REJECT.search(text):
            return []
        if not re.search(r"\w", text) or (not merged and item["role"] != "user"):
            continue
        if merged and merged[-1].role == item["role"]:
            text = f"{merged.pop().content} {text}"
        merged.append(Message(item["role"], text))
    return merged[: len(merged) // 2 * 2]


def cut(messages: list[Message], encode: Encode) -> Iterator[tuple[Message, ...]]:
    """Cut a conversation into parts of at most MAX_DOCUMENT tokens, each of whole exchanges."""
    part: list[Message] = []
    used = 0
    for start in range(0, len(messages), 2):
        exchange = messages[start : start + 2]
        length = len(encode(tuple(exchange)))
        if part and used + length > MAX_DOCUMENT:
            yield tuple(part)
            part, used = [], 0
        if length <= MAX_DOCUMENT:
            part += exchange
            used += length
    if part:
        yield tuple(part)


def dialogues(text: str, encode: Encode) -> Iterator[Unit]:
    """Read one conversation per JSON line."""
    for line in text.splitlines():
        yield from cut(clean_dialogue(json.loads(line)["messages"]), encode)


def pairs(text: str, encode: Encode, mend: bool = True) -> Iterator[Unit]:
    """Read pairs without unwanted categories and topics; `mend` small talk, not the text of exercises."""
    for row in json.loads(text):
        both, category = f"{row['user']}\n{row['bot']}", row.get("category")
        if NAMES.search(both) or category in UNWANTED or (category and TOPICS.search(both)):
            continue
        texts = [normalise(row["user"]), normalise(row["bot"])]
        if mend:
            texts = [tidy(texts[0], close=False), tidy(texts[1], close=True)]
        pair = Message("user", texts[0]), Message("assistant", texts[1])
        unfit = any(REJECT.search(t) or "```" in t or (mend and (len(t) < 2 or WEB.search(t))) for t in texts)
        if not unfit and texts[1] and len(encode(pair)) <= MAX_PAIR:
            yield pair


def stories(text: str, encode: Encode) -> Iterator[Unit]:
    """Read stories parted by the end marker."""
    for story in text.split("<|endoftext|>"):
        story = normalise(story)
        if len(story) > 100 and not REJECT.search(story) and not re.search(r"https?:|www\.|[|{}]", story):
            yield story


def news(text: str, encode: Encode) -> Iterator[Unit]:
    """Read articles of which most paragraphs are whole; links cut away left holes in the others."""
    for article in text.split("<|endoftext|>"):
        title, *body = html.unescape(article).translate(QUOTES).strip().split("\n")
        body = [line.strip() for line in body if len(line.split()) >= 8]
        whole = [line for line in body if PROSE.fullmatch(line) and not HOLES.search(line)]
        good = [line for line in map(normalise, whole) if not WEB.search(line) and not REJECT.search(line)]
        if len(good) >= max(2, 0.6 * len(body)) and title[:1].isupper() and not HOLES.search(title):
            yield "\n".join([normalise(title), *good])


def is_prose(paragraph: str) -> bool:
    """Tell prose from headings, verse, tables and markup."""
    letters = [char for char in paragraph if char.isalpha()]
    return (
        PROSE.fullmatch(paragraph) is not None
        and not re.search(r"[*_#|<>{}\[\]=~\\+]|---|\s[.,;]|\.{4}", paragraph)
        and not re.match(r"(?:Title|Author|Year|Chapter|CHAPTER|Part)\b", paragraph)
        and not REJECT.search(paragraph)
        and sum(char.isupper() for char in letters) < 0.3 * len(letters)
        and sum(char.isdigit() for char in paragraph) < 0.1 * len(paragraph)
    )


def books(text: str, encode: Encode) -> Iterator[Unit]:
    """Read runs of prose paragraphs; a heading or verse ends a run."""
    for book in text.split("<|endoftext|>"):
        run: list[str] = []
        for block in re.split(r"\n\s*\n", book):
            lines = [line.strip() for line in block.strip().split("\n")]
            verse = len(lines) > 1 and max(map(len, lines[:-1])) < 50
            paragraph = normalise(" ".join(lines))
            prose = not verse and is_prose(paragraph)
            size = sum(map(len, run))
            if size >= BOOK_MIN or (run and not prose) or size + len(paragraph) > BOOK_MAX:
                if 600 <= size <= BOOK_MAX:
                    yield "\n".join(run)
                run = []
            run += [paragraph] if prose else []


def written(text: str, encode: Encode) -> Iterator[Unit]:
    """Read conversations of `User:` and `Bot:` lines, an empty line between two."""
    roles = {"User": "user", "Bot": "assistant"}
    for block in re.split(r"\n\s*\n", text.strip()):
        turns = [line.split(": ", 1) for line in block.splitlines()]
        messages = [Message(roles[who], normalise(said)) for who, said in turns]
        if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
            raise click.ClickException(f"expected User and Bot in turn, found {block!r}")
        yield from cut(messages, encode)


def rows(text: str, encode: Encode) -> Iterator[Unit]:
    """Read questions (`? `), each with the answers (`! `) behind them."""
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [(line[:2], normalise(line[2:])) for line in block.splitlines()]
        for question in (said for mark, said in lines if mark == "? "):
            for answer in (said for mark, said in lines if mark == "! "):
                yield Message("user", question), Message("assistant", answer)


READERS = {f.__name__: f for f in (dialogues, pairs, stories, news, books, written, rows)}
READERS["instructions"] = partial(pairs, mend=False)


def key(unit: Unit) -> str:
    """Return the letters of a document, by which duplicates are found."""
    text = unit if isinstance(unit, str) else "\n".join(m.content for m in unit)
    return re.sub(r"\W+", " ", text).strip().casefold()


def chains(units: list[Unit], encode: Encode, rng: random.Random) -> Iterator[list[int]]:
    """Draw every pair once: half of them alone, the others in conversations of two to four pairs."""
    pool = rng.sample(units, len(units))
    yield from map(encode, pool[: len(pool) // 2])
    rest = pool[len(pool) // 2 :]
    while rest:
        conversation: tuple[Message, ...] = ()
        for _ in range(rng.randint(2, 4)):
            if rest and (not conversation or len(encode(conversation + rest[-1])) <= MAX_DOCUMENT):
                conversation += rest.pop()
        yield encode(conversation)


def load(source: Source, folder: Path, encode: Encode, seen: set[str]) -> list[tuple[Unit, list[int]]]:
    """Return a source's distinct documents in a random order, up to its cap."""
    units: list[Unit] = []
    if source.licence == "MIT":
        folder = HERE / "data"
    if source.kind == "made":
        between = [
            unit for path in sorted(folder.glob("dialogues/*.txt")) for unit in written(path.read_text("utf-8"), encode)
        ]
        units += Generator(folder / source.path, between).conversations(MADE, SEED)
    for path in sorted(folder.glob(source.path)) if source.kind != "made" else ():
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
        for unit in READERS[source.kind](text, encode):
            if (name := key(unit)) not in seen:
                seen.add(name)
                units.append(unit)
    if not units:
        raise click.ClickException(f"{folder / source.path}: no documents found")
    random.Random(f"{SEED} {source.name}").shuffle(units)
    documents, tokens = [], 0
    for unit in units:
        if source.cap is not None and tokens >= source.cap:
            break
        documents.append((unit, encode(unit)))
        tokens += len(documents[-1][1])
    return documents


def split(source: Source, documents: list[tuple[Unit, list[int]]], encode: Encode) -> tuple[list, list, list]:
    """Return the documents of the long run and of the closing run with their repeats, and the held-out ones."""
    count = min(HELDOUT_MAX, max(1, round(HELDOUT_SHARE * len(documents))))
    heldout, kept = documents[:count], documents[count:]
    rng = random.Random(f"{SEED} {source.name} repeats")

    def repeated(times: float) -> list[np.ndarray]:
        drawn = [kept] * int(times) + [rng.sample(kept, int(times % 1 * len(kept)))]
        if source.kind in ("pairs", "instructions", "rows"):
            found = [ids for part in drawn for ids in chains([unit for unit, _ in part], encode, rng)]
        else:
            found = [ids for part in drawn for _, ids in part]
        return [np.array(ids, np.uint16) for ids in found]

    return repeated(source.repeats), repeated(source.closing), [np.array(ids, np.uint16) for _, ids in heldout]


def write(folder: Path, name: str, documents: list[np.ndarray]) -> None:
    """Write documents as one run of ids, and their offsets."""
    folder.mkdir(parents=True, exist_ok=True)
    np.concatenate(documents).tofile(folder / f"{name}.bin")
    np.cumsum([0, *map(len, documents)], dtype=np.int64).tofile(folder / f"{name}.idx")


@click.command(help=__doc__)
@click.option("--datasets", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", default="corpus", show_default=True, type=click.Path(path_type=Path))
def main(datasets: Path, out: Path) -> None:
    tokenizer = Tokenizer.gpt2()

    def encode(unit: Unit) -> list[int]:
        if isinstance(unit, str):
            return [*tokenizer.encode(unit), tokenizer.end_id]
        return list(render(unit, TEMPLATES["chat"], tokenizer).ids)

    runs: dict[str, list[np.ndarray]] = {"train": [], "closing": [], "heldout": []}
    table, seen = [], set[str]()
    for source in SOURCES:
        documents = load(source, datasets, encode, seen)
        row = asdict(source) | {"documents": len(documents), "tokens": sum(len(ids) for _, ids in documents)}
        for name, part in zip(runs, split(source, documents, encode), strict=True):
            runs[name] += part
            row |= {f"{name}_documents": len(part), f"{name}_tokens": sum(map(len, part))}
            if name == "heldout":
                write(out, f"heldout-{source.name}", part)
        table.append(row)
    for name, documents in runs.items():
        random.Random(SEED).shuffle(documents)
        write(out, name, documents)
    counts = [name for name in table[0] if name.endswith(("documents", "tokens"))]
    totals = {name: sum(row[name] for row in table) for name in counts}
    manifest = {"seed": SEED, "sources": table, "totals": totals}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for row in [*table, {"name": "total", "repeats": "", "closing": ""} | totals]:
        shares = f"x{row['repeats']!s:3} x{row['closing']!s:4}"
        print(f"{row['name']:18} {shares}", *(f"{row[k]:11,}" for k in counts), file=sys.stderr)


if __name__ == "__main__":
    main()
