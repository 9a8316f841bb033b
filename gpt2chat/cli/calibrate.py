"""`gpt2chat eval --calibrate`: how sure answers must be to be given, as held-out pairs show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import sources, stacked
from gpt2chat.cli.terminal import say

if TYPE_CHECKING:
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.confidence import Calibration, Case
    from gpt2chat.conversation import Message
    from gpt2chat.evaluation import Reply
    from gpt2chat.matching import Matcher
    from gpt2chat.runtime import Runtime
    from gpt2chat.taught import Pair

SHOWN = (100, 95, 90, 80, 70, 50)  # per cent of the questions
SELDOM = 0.1  # share of the questions below which a bot is of no use
WORTH = 0.5  # precision below which a threshold is no help
OWN_OPTIONS = ("coverage", "precision", "receipt", "taught")


def calibration_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --calibrate and what belongs to it."""
    file, share = click.Path(path_type=Path), click.FloatRange(0, 1, min_open=True)
    where = "Where --calibrate writes (.json).  [default: NAME.confidence.json beside the checkpoint]"
    options = (
        click.option("--calibrate", is_flag=True, help="Learn from held-out pairs how sure an answer must be."),
        click.option(
            "--coverage", type=share, help="Share of the questions to answer.  [default: what serves most questions]"
        ),
        click.option("--precision", type=share, help="Instead: share of the given answers to get right."),
        click.option("--receipt", type=file, help=where),
        click.option("--taught", type=file, multiple=True, help="What an older model was taught, if it keeps nothing."),
    )
    return stacked(*options)(function)


def check_options(name: str, conversation_file: Sequence[Path], calibrate: bool, **o: Any) -> None:
    """Check what needs no model; raises ConfigError."""
    from gpt2chat.errors import ConfigError

    if not calibrate:
        for option in OWN_OPTIONS:
            if o[option]:
                raise ConfigError(f"{option}: belongs to --calibrate, which was not passed")
        return
    if not conversation_file:
        raise ConfigError("calibrate: expected --conversation_file with held-out pairs, got none")
    if o["coverage"] and o["precision"]:
        raise ConfigError("coverage, precision: expected one of the two, got both")
    _receipt(name, o["receipt"])


def check_count(pairs: int) -> None:
    """Refuse, before any is answered, held-out pairs that are too few to learn from; raises DataError."""
    from gpt2chat.confidence import LEAST_PAIRS
    from gpt2chat.errors import DataError

    if pairs < LEAST_PAIRS:
        raise DataError(
            f"calibrate: expected at least {LEAST_PAIRS} held-out pairs, found {pairs}: hold out more "
            "(gpt2chat data split --fraction)"
        )


def _receipt(name: str, receipt: Path | None) -> Path:
    """Return where the calibration goes; raises ConfigError for a place that is none or holds something else."""
    from gpt2chat import pretrained
    from gpt2chat.confidence import FORM, receipt_path
    from gpt2chat.errors import ConfigError

    if receipt is None:
        path = pretrained.checkpoint_file(name)
        if path is None or pretrained.is_bundled(path):
            raise ConfigError(f"receipt: {name} is no .pt file of yours that it could lie beside: pass --receipt FILE")
        receipt = receipt_path(path)
    elif receipt.suffix != ".json":
        raise ConfigError(f"receipt: expected a name that ends in .json, got {str(receipt)!r}")
    if receipt.is_dir() or (receipt.exists() and FORM.encode() not in receipt.read_bytes()[:200] != b""):
        raise ConfigError(f"receipt: {receipt} holds something else and would be overwritten: pass another name")
    return receipt


def calibrated(
    name: str,
    loaded: Checkpoint,
    runtime: Runtime,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[Reply],
    coverage: float | None,
    precision: float | None,
    receipt: Path | None,
    taught: Sequence[Path],
    encoding: str | None,
    grounded: bool | None,
    **_: Any,
) -> dict[str, Any]:
    """Fit confidence to the answers that a model gave, write the receipt, and return what is shown of it.

    Where a bot with a fallback would give taught answers word for word, those are what is judged.
    """
    from gpt2chat import packs, pretrained
    from gpt2chat.confidence import Judge, as_it_is, calibrate, judge_of
    from gpt2chat.grounding import is_faq

    path, file = _receipt(name, receipt), pretrained.checkpoint_file(name)
    pairs = pairs_in(taught, encoding) if taught else loaded.taught
    if not pairs:
        say("note: the model keeps no taught questions: pass --taught FILE, or its own probabilities are all there is")
    content = [[(message.role, message.content) for message in messages] for messages in conversations]
    grounded = is_faq(loaded.about) if grounded is None else grounded
    used = judge_of(name, pairs, say, grounded)
    if grounded:
        say("judging taught answers word for word, as --fallback gives them (--no_grounded: the model's own words)")
        cases = list(_grounded_cases(runtime, loaded, used.matcher, conversations))
    else:
        cases = list(_cases(runtime, loaded, conversations, replies))
    found = calibrate(
        Judge(used.matcher),
        cases,
        coverage,
        precision,
        model=pretrained.name_of(loaded),
        checkpoint=packs.identity(file) if file else None,
        runtime=runtime.description,
        data_sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )
    _remark(found)
    (decided, precise), asked = as_it_is(used, cases, found.coverage), coverage or precision
    before, after = (precise, found.precision) if asked else (decided, found.decided_rightly)
    what = f"of the answers to {found.coverage:.0%} right" if asked else "rightly answered or declined"
    compared = f"{after:.1%} {what}, {before:.1%} as it is"
    if after < before:
        say(f"not saved, as what is in use does better: {compared}")
    else:
        found.save(path)
        say(f"saved {path}: {compared}")
    shown = {**found.to_dict(), "receipt": str(path), "table": _rows(found), "saved": after >= before}
    return shown | {"compared": {"what": what, "now": round(after, 4), "before": round(before, 4)}}


def _remark(found: Calibration) -> None:
    """Say what makes a calibration worth less than it looks."""
    if found.known:
        say(f"note: {found.known} of the {found.pairs} questions were taught word by word: new ones are harder")
    if found.coverage < SELDOM:
        say(f"warning: it would answer {found.coverage:.0%} of the questions: ask for less with --precision")
    if found.precision < WORTH:
        say(
            f"warning: of the answers that it would give {found.precision:.0%} are right: teach it more like these "
            "questions, or ask for less with --coverage or --precision"
        )


def _cases(
    runtime: Runtime, loaded: Checkpoint, conversations: Sequence[Sequence[Message]], replies: Sequence[Reply]
) -> Iterator[Case]:
    """Yield each answer with the log-probabilities of its tokens."""
    from tqdm import tqdm

    from gpt2chat.confidence import Case
    from gpt2chat.conversation import render_prompt
    from gpt2chat.explanation import explain
    from gpt2chat.generation import Decoder
    from gpt2chat.tokenizer import Tokenizer

    decoder, tokenizer = Decoder(runtime), Tokenizer.gpt2()
    pairs = zip(conversations, replies, strict=True)
    for (*before, _), reply in tqdm(pairs, total=len(replies), desc="scores", unit="q", disable=None, leave=False):
        scores = explain(decoder, render_prompt(before, loaded.template, tokenizer), reply.ids, top=0)
        yield Case(reply.question, reply.answer, [score.logprob for score in scores], reply.exact)


def _grounded_cases(
    runtime: Runtime, loaded: Checkpoint, matcher: Matcher, conversations: Sequence[Sequence[Message]]
) -> Iterator[Case]:
    """Yield the taught answer that a grounded bot finds for each question, and how sure it is."""
    from tqdm import tqdm

    from gpt2chat.confidence import Case
    from gpt2chat.conversation import render_prompt
    from gpt2chat.generation import Decoder
    from gpt2chat.grounding import Grounding, spoken
    from gpt2chat.tokenizer import Tokenizer

    decoder, tokenizer, grounding = Decoder(runtime), Tokenizer.gpt2(), Grounding(matcher)
    for *before, expected in tqdm(conversations, desc="scores", unit="q", disable=None, leave=False):
        alone = [*(message for message in before[:-1] if message.role == "system"), before[-1]]
        prompt = render_prompt(alone, loaded.template, tokenizer)
        chosen, _ = spoken(grounding, before[-1].content, prompt, loaded.template.lead, decoder)
        answer = chosen.match.answer if chosen.match else ""
        right = answer.strip() == expected.content.strip()
        yield Case(before[-1].content, answer, (), right, chosen.confidence)


def pairs_in(files: Sequence[Path], encoding: str | None) -> list[Pair]:
    """Read questions and answers, the last ones of each conversation."""
    from gpt2chat.data import last_pair
    from gpt2chat.formats import read_conversations
    from gpt2chat.records import Report
    from gpt2chat.taught import merged

    report = Report()
    records = read_conversations(sources(files, encoding, report), report)
    for line in report.lines():
        say(f"note: {line}")
    return merged([], filter(None, map(last_pair, records)))


def _rows(found: Calibration) -> list[dict[str, float]]:
    from gpt2chat.confidence import at_coverage

    points = [(share, at_coverage(found.curve, share / 100)) for share in SHOWN]
    return [{"coverage": s / 100, "precision": round(p.precision, 4), "threshold": p.threshold} for s, p in points]


def table(found: dict[str, Any]) -> list[str]:
    """Return lines that show the curve and what was chosen."""
    lines = ["  confidence  answered   of these right   threshold"]
    for row in found["table"]:
        lines.append(f"            {row['coverage']:>10.0%}{row['precision']:>17.1%}{row['threshold']:>12.3f}")
    lines.append(
        f"  chosen    {found['threshold']:.3f}: {found['coverage']:.1%} of {found['pairs']} questions are answered, "
        f"{found['precision']:.1%} of these right"
    )
    return lines
