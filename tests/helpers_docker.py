"""A Dockerfile as data: its stages and instructions, the rules it should keep, and its steps run without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

APT = "apt-get"


@dataclass(frozen=True)
class Step:
    """One instruction: its line, its name and what follows, with continued lines joined."""

    line: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The list of an instruction in exec form."""
        return json.loads(self.text[self.text.index("[") :])


def parse(text: str) -> Iterator[Step]:
    """Yield the instructions of a Dockerfile."""
    joined, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or joined):
            continue
        begun = begun if joined else number
        joined += line.rstrip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            name, _, rest = joined.strip().partition(" ")
            yield Step(begun, name, " ".join(rest.split()))
            joined = ""


def stages(text: str) -> list[list[Step]]:
    """The instructions from each FROM to the next."""
    found: list[list[Step]] = []
    for step in parse(text):
        if step.name == "FROM":
            found.append([])
        found[-1].append(step)
    return found


def faults(text: str) -> list[str]:
    """What a linter would say, by line."""
    found = []
    for steps in stages(text):
        names = [step.name for step in steps]
        for step in steps:
            found += [f"{step.line}: {said}" for said in _faults_of(step)]
        if "USER" in names and "RUN" in names[names.index("USER") :]:
            found.append(f"{steps[0].line}: RUN after USER")
    last = stages(text)[-1]
    user = next((step.text for step in reversed(last) if step.name == "USER"), "root")
    if user.split(":")[0] in ("root", "0"):
        found.append(f"{last[0].line}: the last stage runs as root")
    for name in ("HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"):
        if [step.name for step in last].count(name) != 1:
            found.append(f"{last[0].line}: expected one {name}")
    return found


def _faults_of(step: Step) -> Iterator[str]:
    if step.name == "FROM":
        image = step.text.split()[0]
        if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image) or image.endswith(":latest"):
            yield f"the base {image} is not pinned"
    elif step.name == "RUN":
        yield from _faults_of_run(step.text)
    elif step.name in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
        command = step.text.partition("CMD ")[2] if step.name == "HEALTHCHECK" else step.text
        if not command.startswith("["):
            yield f"{step.name} is not in exec form"
    elif step.name == "WORKDIR" and not step.text.startswith("/"):
        yield "WORKDIR is not absolute"
    elif step.name == "ADD":
        yield "ADD where COPY would do"
    elif step.name in ("ENV", "ARG") and re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\w*=\S", step.text):
        yield f"a secret in {step.name}"


def _faults_of_run(text: str) -> Iterator[str]:
    for command in re.split(r"\s*(?:&&|;|\|\|)\s*", text):
        if command.startswith("pip install") and "--no-cache-dir" not in command:
            yield "pip keeps its cache"
        if command.startswith(f"{APT} install") and not {"-y", "--no-install-recommends"} <= set(command.split()):
            yield "apt-get install without -y --no-install-recommends"
        if command.split()[:1] in (["sudo"], ["cd"], ["apt"], ["curl"], ["wget"]):
            yield f"{command.split()[0]} in RUN"
    if f"{APT} update" in text and "rm -rf /var/lib/apt/lists/*" not in text:
        yield "apt's lists stay"


@dataclass
class Room:
    """A folder that stands for the image's root: COPY, ENV, WORKDIR and RUN happen in it."""

    root: Path
    source: Path
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    ran: list[str] = field(default_factory=list)

    def placed(self, text: str) -> str:
        """The same text with the image's folders as they are here."""
        folders = "opt/venv|opt/gpt2chat|build|cache|logs|models|service"
        return re.sub(rf"(?<![\w.~-])/(?={folders})", f"{self.root}/", text)

    def take(self, steps: list[Step]) -> None:
        """Do what a stage says, apt's commands left out."""
        self.workdir = "/"
        self.environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self.environment["HOME"] = os.environ.get("HOME", "/")  # for pip's settings
        for step in steps:
            match step.name:
                case "ARG":
                    name, _, value = step.text.partition("=")
                    self.environment[name] = value
                case "ENV":
                    for name, value in re.findall(r"(\w+)=(\S+)", step.text):
                        value = value.replace("$PATH", self.environment["PATH"])
                        self.environment[name] = self.placed(value)
                case "WORKDIR":
                    self.workdir = step.text
                    self.here.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self.copy(step)
                case "RUN":
                    self.run(step.text)

    @property
    def here(self) -> Path:
        """The working directory."""
        return Path(self.placed(self.workdir)) if self.workdir != "/" else self.root

    def copy(self, step: Step) -> None:
        """Copy what .dockerignore lets through; what comes from another stage is there already."""
        words = [word for word in step.text.split() if not word.startswith("--")]
        if "--from=" in step.text:
            assert Path(self.placed(words[0])).exists() and words[0] == words[1]
            return
        allowed = (self.source / ".dockerignore").read_text().splitlines()
        for name in words[:-1]:
            assert f"!{name}" in allowed, f"{name} does not reach the builder"
            source, target = self.source / name, self.here / words[-1]
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pack"))
            else:
                shutil.copy(source, target)

    def run(self, text: str) -> None:
        """Run a line as /bin/sh would."""
        if text.startswith(APT):
            return
        command = self.placed(text)
        if not hasattr(os, "geteuid") or os.geteuid():
            command = re.sub(r"\s*&&\s*chown [^&]*", "", command)
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.here, env=self.environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self.ran.append(text)
