"""What a run reads and where it goes: data files, what the model was taught before, and the checks between the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gpt2chat import shelf
from gpt2chat.checkpoint import Checkpoint, taught_pairs
from gpt2chat.cli.options import WAY_OUT, sources
from gpt2chat.confidence import pairs_sha256
from gpt2chat.conversation import Message, exchanges
from gpt2chat.errors import ConfigError, DataError
from gpt2chat.formats import Library, Source
from gpt2chat.records import Record, Report
from gpt2chat.run import RunFiles, check_replaceable, check_writable, hash_file
from gpt2chat.taught import MOST_BYTES, Pair, merged, sampled


def read_inputs(options: dict[str, Any], report: Report) -> tuple[RunFiles, Library, dict[str, str]]:
    """Read the data and check where the run goes, which for a tagged run depends on what the data are."""
    places = _sources(options, report)
    tag = options["model_tag"] if not options["resume"] else None
    files = RunFiles(options["save_path"])
    if not tag:
        _check_files(files, places)
    library, hashes = _read(options, places, report)
    if tag:
        files = RunFiles(shelf.tagged("sft" if options["rehearse"] else source_of(library), tag))
        _check_files(files, places)
    if not options["dry_run"]:
        check_writable(files)
    return files, library, hashes


def _check_files(files: RunFiles, places: Sequence[tuple[Source, str | None]]) -> None:
    _spare_the_data(files, (source for source, _ in places))
    check_replaceable(files)


def source_of(library: Library) -> str:
    """Return what a model is taught on, in one word."""
    return "sft" if library.conversations else "mid"


def is_faq(library: Library, base: Checkpoint) -> bool:
    """Whether a model will have been taught nothing but single questions and answers."""
    before = not base.taught or base.about.get("faq") is True
    single = all(len(record.content) == 2 for record in library.conversations)
    return before and single and bool(library.conversations) and not library.texts


def _spare_the_data(files: RunFiles, sources: Iterable[Source]) -> None:
    """Refuse to write over what is read."""
    written = (files.best, files.last, files.metrics, files.curve, files.samples)
    read = {source.path.resolve() for source in sources}
    for path in written:
        if path.resolve() in read:
            raise ConfigError(f"save_path: {path} is training data and would be overwritten; pass another name")


def _read(
    options: dict[str, Any], sources: Sequence[tuple[Source, str | None]], report: Report
) -> tuple[Library, dict[str, str]]:
    """Read all data files; return their records, and the hash of each file by its name."""
    separator = options["text_separator"]
    separator = separator.replace("\\n", "\n").replace("\\t", "\t") if separator else None  # as typed in a shell
    library, hashes = Library(report, options["format"], separator), dict[str, str]()
    for source, only in sources:
        try:
            library.add(source, only)
        except DataError as error:
            way_out = "" if "goes to --" in str(error) else WAY_OUT
            raise DataError(f"{error}{way_out}") from None
        hashes[source.label or source.path.as_posix()] = hash_file(source.path)
    if not library.conversations and not library.texts:
        raise DataError("nothing is left to learn from: " + "; ".join(report.lines()))
    return library, hashes


def _sources(options: dict[str, Any], report: Report) -> list[tuple[Source, str | None]]:
    """Return the data files, each with the only kind of records it may hold."""
    encoding, found = options["encoding"], list[tuple[Source, str | None]]()
    for option, only in (("conversation_file", "conversations"), ("text_file", "texts"), ("data", None)):
        found += [(source, only) for source in sources(options[option], encoding, report)]
    return found


def taught_by(options: dict[str, Any], base: Checkpoint, learnt: Iterable[Record], lines: list[str]) -> list[Pair]:
    """Return the questions and answers that the checkpoint will keep; an interrupted run has chosen them before."""
    if options["resume"] and base.taught:
        return base.taught
    pairs = merged(base.taught, (pair for record in learnt for pair in _taught(record)))
    kept = sampled(pairs, MOST_BYTES)
    if len(kept) < len(pairs):
        room = f"{MOST_BYTES / 1e6:.0f} MB of text"
        lines.append(f"the checkpoint keeps {len(kept)} of {len(pairs)} taught questions, evenly chosen: {room}")
    return kept


def _taught(record: Record) -> list[Pair]:
    return [] if isinstance(record.content, str) else exchanges(record.content)


def rehearse(options: dict[str, Any], base: Checkpoint, library: Library, hashes: dict[str, str]) -> list[Pair]:
    """Add what the model was taught before to what it learns now, but for questions that are taught anew; return it.

    An interrupted run has noted what that was. Raises ConfigError when the checkpoint keeps nothing of it.
    """
    noted = ((base.training or {}).get("settings") or {}).get("rehearsed") if options["resume"] else None
    if not base.taught and noted is None:
        raise ConfigError("rehearse: the model keeps no pairs that it was taught: pass --conversation_file with them")
    anew = {question for record in library.conversations for question, _ in _taught(record)}
    once = Counter(question for question, _ in base.taught)  # others depend on what was said before
    new = [pair for pair in base.taught if pair[0] not in anew and once[pair[0]] == 1]
    known = taught_pairs(noted) if noted is not None else new
    talks = [(Message("user", question), Message("assistant", answer)) for question, answer in known]
    library.conversations += [Record(f"rehearsed {number}", talk) for number, talk in enumerate(talks, 1)]
    library.found.append(f"rehearsed: {len(known)} pairs that the model was taught before")
    hashes["rehearsed"] = pairs_sha256(known)
    return known
