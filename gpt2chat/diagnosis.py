"""What a bug report should say about an installation: facts, and for what is not as it should be, what to do.

Each check imports what it looks at by itself, so that a missing package or a fault is one line of the report. No check
uses the network. Texts are freed of passwords, tokens, the home folder and the user's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata, resources
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2chat import machine, privacy
from gpt2chat.files import cache_folder
from gpt2chat.version import __version__

if TYPE_CHECKING:
    from gpt2chat.runtime import Runtime

OK, NOTE, PROBLEM = "ok", "note", "problem"
PYTHON = (3, 11)
NEEDS = {  # the lowest versions, as in setup.cfg
    "torch": (2, 10),
    "tiktoken": (0, 13),
    "tqdm": (4, 66),
    "numpy": (1, 26),
    "click": (8, 1),
    "safetensors": (0, 5),
    "huggingface_hub": (1, 0),
}
OPTIONAL = {  # what each extra of the installation adds, and its packages, as in setup.cfg
    "chat": ("a better line editor in chat", ("prompt_toolkit",)),
    "serve": ("gpt2chat serve", ("starlette", "uvicorn", "pydantic", "prometheus_client")),
}
REINSTALL = "pip install -c constraints.txt -e . in the folder of gpt2chat"
CPU_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
GPP = "install one: apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
GB = 1e9
SPEED_SECONDS = 2.0
SLOW = 20.0  # tokens per second of the demo model, below which chatting is no pleasure

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """One line of the report: `state` is ok, note or problem; `advice` says what to do unless it is ok."""

    name: str
    state: str
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dataclasses.asdict(self)


Check = Callable[[Notice], Finding]


def diagnose(checks: Iterable[tuple[str, Check]] | None = None, notice: Notice | None = None) -> Iterator[Finding]:
    """Yield the finding of each check, by default of all `CHECKS`; a fault in one is its finding, a problem.

    `notice` is told what takes long.
    """
    for name, check in CHECKS if checks is None else checks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                finding = check(notice or (lambda line: None))
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            missing = isinstance(error, ModuleNotFoundError) and error.name in NEEDS
            finding = Finding(name, PROBLEM, said, REINSTALL if missing else "report this line with what you did")
        yield scrubbed(dataclasses.replace(finding, name=name))


def scrubbed(finding: Finding) -> Finding:
    """Return a finding without what is private."""
    hide = privacy.hider()
    return Finding(finding.name, finding.state, hide(finding.found), hide(finding.advice), hide(finding.facts))


# -- what is installed -------------------------------------------------------------------------------------------------


def _python(notice: Notice) -> Finding:
    found = f"gpt2chat {__version__}, python {platform.python_version()} ({platform.python_implementation()})"
    facts = {"gpt2chat": __version__, "python": platform.python_version(), "executable": sys.executable}
    if sys.version_info < PYTHON:
        return Finding("", PROBLEM, found, "python 3.11 or later is needed: make a new environment with it", facts)
    return Finding("", OK, f"{found}, {sys.executable}", "", facts)


def _packages(notice: Notice) -> Finding:
    more = {extra: packages for extra, (_, packages) in OPTIONAL.items()}
    versions = {name: _version(name) for name in (*NEEDS, *chain(*more.values()))}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    wrong = [name for name, low in NEEDS.items() if _numbers(versions[name]) < low]
    if wrong:
        needed = ", ".join(f"{name}>={'.'.join(map(str, NEEDS[name]))}" for name in wrong)
        return Finding("", PROBLEM, found, f"{needed} needed: {REINSTALL}", dict(versions))
    absent = [extra for extra, packages in more.items() if any(versions[name] is None for name in packages)]
    if absent:
        advice = ", ".join(f"pip install 'gpt2chat[{extra}]' ({OPTIONAL[extra][0]})" for extra in absent)
        return Finding("", NOTE, found, f"if you like: {advice}", dict(versions))
    return Finding("", OK, found, "", dict(versions))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version or "")[:2]))


def _tokenizer(notice: Notice) -> Finding:
    from gpt2chat.tokenizer import RANKS_SHA256, Tokenizer

    data = resources.files("gpt2chat").joinpath("assets/r50k_base.tiktoken").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    facts = {"sha256": digest, "expected": RANKS_SHA256}
    if digest != RANKS_SHA256:
        found = f"vocabulary with SHA-256 {digest[:16]}, expected {RANKS_SHA256[:16]}"
        return Finding("", PROBLEM, found, f"the file is damaged: {REINSTALL}", facts)
    text = "Hello, world: 1 + 1 = 2"
    tokenizer = Tokenizer.gpt2()
    if tokenizer.decode(tokenizer.encode(text)) != text:
        return Finding("", PROBLEM, "text does not survive encoding and decoding", REINSTALL, facts)
    return Finding("", OK, f"SHA-256 {digest[:16]}, as expected", "", facts)


# -- the machine -------------------------------------------------------------------------------------------------------


def _system(notice: Notice) -> Finding:
    facts = {"platform": platform.platform(), "processor": machine.processor()}
    return Finding("", OK, f"{facts['platform']}, {facts['processor']}", "", facts)


def _device(notice: Notice) -> Finding:
    import torch

    build = torch.version.cuda and f"CUDA {torch.version.cuda}"
    facts: dict[str, Any] = {"build": build or "cpu", "mps": torch.backends.mps.is_available()}
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        facts["cuda"] = [{"name": card.name, "memory": card.total_memory} for card in cards]
        words = ", ".join(f"{card.name} ({card.total_memory / GB:.0f} GB)" for card in cards)
        return Finding("", OK, f"cuda: {words}, torch built for {build}", "", facts)
    if facts["mps"]:
        return Finding("", OK, "mps (Apple)", "", facts)
    if build and machine.nvidia():
        advice = "the driver and torch do not fit: update the driver, or take the build of torch for it (pytorch.org)"
        return Finding("", NOTE, f"cpu: torch is built for {build}, but cannot use the NVIDIA card", advice, facts)
    if build:
        advice = f"gigabytes of CUDA are not needed here: {CPU_BUILD}"
        return Finding("", NOTE, f"cpu: torch is built for {build}, but there is no NVIDIA card", advice, facts)
    if machine.nvidia():
        advice = "to use it: pip install torch --index-url https://download.pytorch.org/whl/cu128"
        return Finding("", NOTE, "cpu: there is an NVIDIA card, but torch is built without CUDA", advice, facts)
    return Finding("", OK, "cpu, torch built without CUDA", "", facts)


def _threads(notice: Notice) -> Finding:
    import torch

    there, usable = machine.cores()
    threads, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    found = f"{threads} threads on {usable} of {there} cores, OMP_NUM_THREADS {asked or 'not set'}"
    facts = {"threads": threads, "usable": usable, "cores": there, "OMP_NUM_THREADS": asked}
    if threads == 1 and usable > 2:
        way_out = "unset OMP_NUM_THREADS" if asked else "set OMP_NUM_THREADS to the number of cores"
        return Finding("", NOTE, found, f"one thread on many cores is slow: {way_out}", facts)
    if threads > usable:
        return Finding("", NOTE, found, f"threads wait for each other: set OMP_NUM_THREADS={usable}", facts)
    return Finding("", OK, found, "", facts)


def _instructions(notice: Notice) -> Finding:
    import torch

    names, seen = machine.instructions(), torch.backends.cpu.get_cpu_capability()
    facts = {"instructions": names, "torch": seen}
    found = f"{', '.join(names) or 'none known'}; torch uses {seen}"
    if seen.upper() in ("DEFAULT", "NO AVX") and not {"AVX2", "NEON"} & set(names):
        return Finding("", NOTE, found, "without AVX2 all will be slow; in a virtual machine pass on the host's", facts)
    return Finding("", OK, found, "", facts)


def _native(notice: Notice) -> Finding:
    from gpt2chat.kernels import KernelUnavailable, kernel

    compiler = machine.compiler()
    facts: dict[str, Any] = {"compiler": compiler, "instructions": None}
    try:
        chosen = kernel(notice)
    except KernelUnavailable as error:
        advice = "torch computes instead, which is slower"
        if "GPT2CHAT_NATIVE" in str(error):
            advice += ": unset GPT2CHAT_NATIVE"
        elif compiler is None:
            advice += f"; {GPP}"
        return Finding("", NOTE, f"cannot be used: {error}", advice, facts)
    facts["instructions"] = chosen.instructions
    return Finding("", OK, f"{chosen.instructions}; compiler: {compiler or 'none, but it is compiled'}", "", facts)


def _memory(notice: Notice) -> Finding:
    sizes = machine.memory()
    if sizes is None:
        return Finding("", OK, "not told by this system")
    total, available = sizes
    found = f"{available / GB:.1f} GB available of {total / GB:.1f} GB"
    facts = {"total": total, "available": available}
    if available < 0.5 * GB:
        return Finding("", PROBLEM, found, "the demo needs 0.5 GB to chat and 1 GB to train: end other programs", facts)
    if available < 2 * GB:
        return Finding("", NOTE, found, "enough for the demo (1 GB to train), not for 124M (4 GB to train)", facts)
    return Finding("", OK, found, "", facts)


# -- folders and switches ----------------------------------------------------------------------------------------------


def _disk(notice: Notice) -> Finding:
    here = machine.folder(Path.cwd(), count=False)
    found = f"{here.free / GB:.1f} GB free in the current folder, {here.path}"
    facts = {"path": str(here.path), "free": here.free, "writable": here.writable}
    if not here.writable:
        return Finding("", NOTE, f"{found}, which cannot be written", "to train, go to a folder of your own", facts)
    if here.free < GB:
        advice = "a trained demo is 0.3 GB, of 124M 2 GB: free some, or give --save_path on another disk"
        return Finding("", PROBLEM, found, advice, facts)
    return Finding("", OK, found, "", facts)


def _cache(notice: Notice) -> Finding:
    place = cache_folder()
    if place is None:
        return Finding("", NOTE, "no home folder to keep anything in", "set GPT2CHAT_CACHE to a folder")
    return _kept(place, "the decoder is compiled and weights are rounded at each start: set GPT2CHAT_CACHE")


def _hub_cache(notice: Notice) -> Finding:
    from huggingface_hub import constants

    return _kept(Path(constants.HF_HUB_CACHE), "nothing can be downloaded: set HF_HOME")


def _kept(place: Path, lack: str) -> Finding:
    """Return what is to be said of a cache; `lack` is what it means when it cannot be written, and the way out."""
    there = machine.folder(place)
    size = f"{'more than ' if there.more else ''}{there.size / 1e6:.0f} MB" if there.exists else "not made yet"
    found = f"{there.path}: {size}, {there.free / GB:.1f} GB free"
    facts = dataclasses.asdict(there) | {"path": str(there.path)}
    if not there.writable:
        return Finding("", NOTE, f"{found}, cannot be written", f"{lack} to a folder that can be", facts)
    if there.free < GB:
        return Finding(
            "", NOTE, found, "little room: free some, or set GPT2CHAT_CACHE and HF_HOME to another disk", facts
        )
    return Finding("", OK, found, "", facts)


def _hub(notice: Notice) -> Finding:
    from huggingface_hub import constants

    endpoint = privacy.plain_url(constants.ENDPOINT)
    token = bool(os.environ.get("HF_TOKEN"))
    facts = {"offline": constants.HF_HUB_OFFLINE, "endpoint": endpoint, "token": token}
    found = f"{endpoint}, HF_TOKEN {'set' if token else 'not set'}"
    if constants.HF_HUB_OFFLINE:
        advice = "only downloaded models and demo can be used: unset HF_HUB_OFFLINE to download others"
        return Finding("", NOTE, f"offline (HF_HUB_OFFLINE), {found}", advice, facts)
    return Finding("", OK, found, "", facts)


# -- a try -------------------------------------------------------------------------------------------------------------


def _speed(notice: Notice) -> Finding:
    from gpt2chat import pretrained
    from gpt2chat.decoding import choose, open_model

    began = time.perf_counter()
    choice = choose(notice=notice)
    _, runtime = open_model(pretrained.DEMO, choice, pretrained.load)
    load_s = time.perf_counter() - began
    prefill, decode = speeds(runtime, SPEED_SECONDS)
    found = f"demo: decode {decode:.0f} tokens/s, prefill {prefill:.0f} tokens/s, loaded in {load_s:.1f} s"
    facts: dict[str, Any] = {
        "decode_tok_s": round(decode, 1),
        "prefill_tok_s": round(prefill, 1),
        "load_s": round(load_s, 2),
    }
    facts |= {"runtime": runtime.description}
    if decode < SLOW:
        advice = "slow: end other programs, and see the lines native and threads"
        return Finding("", NOTE, f"{found}, {runtime.description}", advice, facts)
    return Finding("", OK, f"{found}, {runtime.description}", "", facts)


def speeds(runtime: Runtime, seconds: float) -> tuple[float, float]:
    """Return tokens per second of reading prompts of random ids and of decoding greedily, found in so many seconds."""
    from gpt2chat.generation import Decoder
    from gpt2chat.sampling import GenerationConfig

    config, rng, clock = runtime.config, random.Random(0), time.perf_counter
    prompt_tokens = min(128, config.n_ctx // 2)
    end, reading = clock() + seconds, 0.3 * seconds
    decoder, prefilled, decoded = Decoder(runtime), list[float](), list[float]()
    longest = GenerationConfig(temperature=0, max_new_tokens=config.n_ctx - prompt_tokens)
    while clock() < end or len(decoded) < 2:
        decoder.cache.truncate(0)
        began = clock()
        stream = decoder.generate([rng.randrange(config.vocab_size) for _ in range(prompt_tokens)], longest, ())
        next(stream)
        first = clock()
        prefilled.append(first - began)
        enough = 4 if sum(prefilled) < reading else config.n_ctx
        for _ in islice(stream, enough):
            decoded.append(clock() - first)
            first = clock()
            if first > end:
                break
    return prompt_tokens / statistics.median(prefilled), 1 / statistics.median(decoded)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("gpt2chat", _python),
    ("packages", _packages),
    ("system", _system),
    ("device", _device),
    ("threads", _threads),
    ("processor", _instructions),
    ("native", _native),
    ("memory", _memory),
    ("disk", _disk),
    ("cache", _cache),
    ("hub cache", _hub_cache),
    ("hub", _hub),
    ("tokenizer", _tokenizer),
    ("speed", _speed),
)
