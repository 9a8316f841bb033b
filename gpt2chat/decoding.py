"""A checkpoint's name -> what answers: which number types, which form of the weights, which runtime, and why."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gpt2chat import packs, pretrained
from gpt2chat.calibration import int4_panels, own_texts
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.drafts import Draft, ModelDraft, PromptLookup
from gpt2chat.errors import ConfigError, GPT2ChatError
from gpt2chat.hardware import HALF, pick_device, pick_dtype
from gpt2chat.kernels import KernelUnavailable, kernel
from gpt2chat.kernels.binding import Kernel
from gpt2chat.model import GPT2Config
from gpt2chat.packs import Pack
from gpt2chat.quantize import Panels, form_for, is_packed, rounded, unpack
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.static import StaticRuntime
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.weights import entries_of, make

QUANTIZE = ("auto", "none", "int8", "int4")
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """How weights are kept and what computes. `form` is one of quantize.FORMS; `kernel` is None for torch."""

    device: torch.device
    dtype: torch.dtype  # of activations that are kept, and of weights that are not quantised
    form: str
    kernel: Kernel | None
    why: str
    compiled: bool = False
    notice: Notice = field(default=lambda line: None, compare=False)  # is told what takes long


def choose(
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "auto",
    notice: Notice | None = None,
    compiled: bool = False,
) -> Choice:
    """Choose the fastest form of unchanged quality where `auto` leaves it open; raises ConfigError.

    That is int8 (perplexity within 1 % of float32) in the native decoder on a CPU; without a compiler, and on other
    devices, bfloat16 where the hardware has it. int4 changes answers more and is only used when it is asked for.
    `compiled` sends torch's steps through torch.compile.
    """
    if quantize not in QUANTIZE:
        raise ConfigError(f"quantize: expected one of {', '.join(QUANTIZE)}, got {quantize!r}")
    place, notice = pick_device(device), notice or logging.getLogger(__name__).info
    kept = pick_dtype(dtype, place, answering=True)
    half = dtype in HALF
    if place.type == "cpu" and (compiled or half):
        notice("torch computes instead of the native decoder: " + ("--compile" if compiled else dtype) + " needs it")
    native, why = None, f"{dtype if half else place.type} computes through torch"
    if place.type == "cpu" and not compiled and not half:
        try:
            native = kernel(notice)
            why = f"native decoder ({native.instructions})"
        except KernelUnavailable as error:
            why = f"torch computes, which is slower, as the native decoder cannot be used: {error}"
            notice(why)
    if native and dtype == "auto":
        kept = torch.bfloat16
    if quantize == "auto":
        quantize = "int8" if native and dtype == "auto" else "none"
    form = str(kept).removeprefix("torch.") if quantize == "none" else quantize
    return Choice(place, kept, form, native, why, compiled, notice)


def runtime_of(loaded: Checkpoint, choice: Choice, keep: Callable[[Pack], None] = lambda pack: None) -> Runtime:
    """Build what runs a checkpoint that is in memory; `keep` is given the pack that was made for the native decoder."""
    if choice.kernel and NativeRuntime.supports(loaded.config):
        pack = packs.build(loaded, choice.form, _compensated(loaded, choice))
        keep(pack)
        return _native(loaded.config, pack, choice, choice.kernel)
    if choice.form in packs.KEPT:
        loaded = dataclasses.replace(loaded, weights=_rounded(loaded, choice), mapped=False)
    model = loaded.build_model(choice.dtype, choice.device).requires_grad_(False)
    if choice.compiled or choice.device.type == "cuda":
        return StaticRuntime(model, choice.form, choice.compiled, choice.notice)
    return TorchRuntime(model, choice.form)


def _compensated(loaded: Checkpoint, choice: Choice) -> dict[str, Panels]:
    """Return the matrices of the layers in int4, rounded for what the model writes itself; none for other forms."""
    if choice.form != "int4":
        return {}
    choice.notice("rounding the weights to int4 and making up for the errors: about 40 seconds at 124M")
    writer = runtime_of(loaded, dataclasses.replace(choice, form="int8"))
    texts = own_texts(writer, min(Tokenizer.gpt2().end_id, loaded.config.vocab_size - 1))
    return int4_panels(loaded, texts)


def open_model(name: str, choice: Choice, read: Callable[[str], Checkpoint]) -> tuple[Checkpoint, Runtime]:
    """Open a model by its name or place; quantised weights are kept beside a `.pt` and only read the next time.

    The checkpoint comes without its weights, which the runtime owns. `read` loads what was not quantised before, and
    raises what it raises.
    """
    path = pretrained.checkpoint_file(name) if choice.form in packs.KEPT and choice.kernel else None
    source = packs.identity(path) if path else None
    if path is None or source is None or choice.kernel is None:
        loaded = read(name)
        return dataclasses.replace(loaded, weights={}), runtime_of(loaded, choice)
    places = list(packs.places(path, choice.form, beside=not pretrained.is_bundled(path)))
    for place in places:
        if found := packs.load(place, source, choice.form):
            return found[0], _native(found[0].config, found[1], choice, choice.kernel)
    loaded = read(name)

    def keep(pack: Pack) -> None:
        if not packs.keep(pack, loaded, source, places):
            choice.notice("the rounded weights could not be kept: they will be made at each start (see GPT2CHAT_CACHE)")

    runtime = runtime_of(loaded, choice, keep)
    return dataclasses.replace(loaded, weights={}), runtime


def draft_for(name: str, runtime: Runtime) -> Draft | None:
    """Return what guesses for a runtime: `none`, `lookup`, or a smaller model by its name.

    `auto` looks up where checking guesses does not change answers at all, which is in the native decoder: through torch
    several rows are rounded differently than one. Raises ConfigError for a model with another vocabulary.
    """
    if name == "none" or (name == "auto" and not isinstance(runtime, NativeRuntime)):
        return None
    if name in ("auto", "lookup"):
        return PromptLookup()
    try:
        _, smaller = open_model(name, choose(str(runtime.device)), pretrained.load)
    except GPT2ChatError as error:
        raise ConfigError(f"draft: expected auto, none, lookup or a smaller model, got {name!r}: {error}") from error
    return ModelDraft(smaller, runtime.config.vocab_size)


def _native(config: GPT2Config, pack: Pack, choice: Choice, native: Kernel) -> Runtime:
    return NativeRuntime(native, config, pack.form, pack.panels, pack.vectors, choice.dtype)


def _rounded(loaded: Checkpoint, choice: Choice) -> dict[str, torch.Tensor]:
    """Return weights rounded to the form and back, for torch, which then gives the same answers within rounding."""
    form, weights = choice.form, {}
    made = _compensated(loaded, choice)
    for name, entry in entries_of(loaded.weights).items():
        if name in made:
            weights[name] = unpack(made[name], form, *entry.shape)
            continue
        tensor = make(entry, torch.float32, mapped=loaded.mapped)
        weights[name] = rounded(tensor, form_for(name, form)) if is_packed(name, entry.shape) else tensor
    return weights
