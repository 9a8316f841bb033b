"""`gpt2chat doctor`: what a bug report should say, and what is not as it should be."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from gpt2chat.cli.terminal import RUNTIME_ERROR, SETTINGS, reports_errors, say, tolerate_any_text, visible

if TYPE_CHECKING:
    from gpt2chat.diagnosis import Finding, Notice

WIDTH, INDENT = 100, 21  # columns of the report, and those before what was found


@click.command("doctor", context_settings=SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def doctor_command(as_json: bool) -> None:
    """Look at the installation and this machine, and say what to do where something is wrong.

    Nothing is sent anywhere; paste the text into a bug report. It holds no passwords, tokens or user names. The exit
    code is 1 when there is a problem.

    \b
    Examples:
      gpt2chat doctor
      gpt2chat doctor --json
    """
    from gpt2chat.diagnosis import CHECKS, PROBLEM, diagnose

    tolerate_any_text()
    checks = (*CHECKS[:-1], ("terminal", _terminal), CHECKS[-1])  # the speed comes last, as it takes longest
    findings = []
    for finding in diagnose(checks, lambda line: say(f"note: {line}")):
        findings.append(finding)
        if not as_json:
            click.echo(lines(finding))
    count = {state: sum(finding.state == state for finding in findings) for state in ("note", "problem")}
    if as_json:
        click.echo(json.dumps({**count, "findings": [finding.to_dict() for finding in findings]}))
    else:
        click.echo(f"{count['problem']} problems, {count['note']} notes")
    if any(finding.state == PROBLEM for finding in findings):
        raise SystemExit(RUNTIME_ERROR)


def lines(finding: Finding) -> str:
    """Return the lines of a finding, aligned, of at most WIDTH columns."""
    head = f"{finding.state:9}{finding.name:{INDENT - 9}}"
    blank = " " * INDENT
    text = [_wrapped(finding.found, head, blank)]
    if finding.advice:
        text.append(_wrapped(finding.advice, f"{blank[:-3]}-> ", blank))
    return "\n".join(text)


def _wrapped(text: str, first: str, rest: str) -> str:
    plain = visible(" ".join(text.split()))
    return textwrap.fill(plain, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _terminal(notice: Notice) -> Finding:
    from gpt2chat.diagnosis import NOTE, OK, Finding

    streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    tty = {name: bool(stream and stream.isatty()) for name, stream in streams.items()}
    encoding = (getattr(sys.stdout, "encoding", None) or "unknown").lower()
    columns = shutil.get_terminal_size().columns
    facts = {**tty, "TERM": os.environ.get("TERM"), "columns": columns, "encoding": encoding}
    facts["NO_COLOR"] = bool(os.environ.get("NO_COLOR"))
    typed = ", ".join(f"{name} {'terminal' if there else 'no terminal'}" for name, there in tty.items())
    colours = "set" if facts["NO_COLOR"] else "not set"
    found = f"{typed}; TERM {facts['TERM'] or 'not set'}, {columns} columns, {encoding}, NO_COLOR {colours}"
    if "utf" not in encoding:
        advice = "letters beyond this encoding become ?: set PYTHONIOENCODING=utf-8 or LANG=C.UTF-8"
        return Finding("", NOTE, found, advice, facts)
    return Finding("", OK, found, "", facts)
