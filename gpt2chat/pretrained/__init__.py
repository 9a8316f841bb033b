"""A model's name or place -> `Checkpoint`: the released sizes, hub repositories, folders and files of any program."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from pathlib import Path
from typing import Any

from gpt2chat import archive, checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.errors import CheckpointError, ConfigError, WeightsError
from gpt2chat.files import near
from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config
from gpt2chat.pretrained import adapter, hub
from gpt2chat.pretrained.layout import HEAD_SIZE, Weights, to_released_names, translate
from gpt2chat.pretrained.places import Stored, read_file, read_folder
from gpt2chat.templates import TEMPLATES, Template
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.weights import as_weights, entries_of, equal

__all__ = [
    "DEFAULT_MODEL",
    "DEMO",
    "canonical_name",
    "checkpoint_file",
    "describe",
    "fresh",
    "is_bundled",
    "is_known",
    "load",
    "name_of",
    "to_released_names",
]

DEMO = "demo"
BUNDLED = Path(__file__).parents[1] / "assets" / "demo.pt"
DEFAULT_MODEL = "gpt2-small (124M)"
# The released sizes: our names -> hub repository.
REPOSITORIES = {
    "gpt2-small (124M)": "openai-community/gpt2",
    "gpt2-medium (355M)": "openai-community/gpt2-medium",
    "gpt2-large (774M)": "openai-community/gpt2-large",
    "gpt2-xl (1558M)": "openai-community/gpt2-xl",
}


def _short_forms() -> dict[str, str]:
    short = {"gpt2": DEFAULT_MODEL}
    for name in MODEL_SIZES:
        plain, size = name.rstrip(")").split(" (")  # "gpt2-small", "124M"
        short |= {name: name, plain: name, size: name, f"gpt2-{size}": name}
    return {form.lower(): name for form, name in short.items()}


SHORT_FORMS = _short_forms()


def canonical_name(name: str) -> str:
    """Return the full name of a released size given in a short form (`124M`, `gpt2`, `gpt2-xl`); others unchanged."""
    return SHORT_FORMS.get(name.strip().lower(), name)


def is_known(name: str) -> bool:
    """Whether a name stands for the demo or a released size, in whatever form."""
    return canonical_name(name) in (DEMO, *MODEL_SIZES)


def load(name: str) -> Checkpoint:
    """Load `demo`, a released size, a file or folder with weights, or a hub repository `owner/name[@revision]`.

    The tensors are views of mapped files. Raises WeightsError, CheckpointError or ConfigError with what was expected
    and what to do.
    """
    return _load(name)


def is_bundled(path: Path) -> bool:
    """Whether a file is part of this package, beside which nothing is written."""
    return path == BUNDLED


def checkpoint_file(name: str) -> Path | None:
    """Return the `.pt` of ours that `load` would read for a name, if it is one."""
    name = canonical_name(name)
    path = BUNDLED if name == DEMO else Path(name)
    with contextlib.suppress(OSError, ValueError):
        return path if path.is_file() and archive.is_checkpoint(path) else None
    return None


def _load(name: str, adapters: bool = True) -> Checkpoint:
    """Do what `load` does; without `adapters` only whole models are taken."""
    name = canonical_name(name)
    if name == DEMO:
        return checkpoint.load(BUNDLED)
    path = Path(name)
    try:
        here = path.exists() or path.suffix in (".pt", ".pth", ".bin", ".safetensors")
    except (OSError, ValueError) as error:  # a name too long for a file system, a NUL
        raise ConfigError(f"model: {name[:40]!r}… cannot be a file name: {error}") from error
    if here:
        return load_place(path, name, adapters)
    if name in REPOSITORIES or hub.is_repository(name):
        return load_place(hub.download(REPOSITORIES.get(name, name), name), name, adapters)
    close = [*difflib.get_close_matches(name.lower(), [DEMO, *SHORT_FORMS], n=1), near(name)]
    meant = f"did you mean {close[0]!r}? " if close[0] else ""
    raise ConfigError(
        f"model: {name!r} is not known: {meant}Expected {DEMO}, {', '.join(map(repr, MODEL_SIZES))}, a hub repository "
        "such as distilbert/distilgpt2, or a file or folder with weights that exists"
    )


def load_place(path: Path, name: str, adapters: bool = True) -> Checkpoint:
    """Load a file or folder with weights in any of the known forms; raises WeightsError or CheckpointError."""
    if path.is_dir() and adapter.is_adapter(path):
        if not adapters:
            raise WeightsError(f"{path}: expected a whole model, found another adapter")
        return _load_adapted(path, name)
    if path.is_file() and archive.is_checkpoint(path):
        return checkpoint.load(path)
    if not path.exists():
        return checkpoint.load(path)  # which says what is missing
    if path.suffix == ".pack":
        raise WeightsError(f"{path}: expected a checkpoint, found weights packed for decoding: pass the .pt beside it")
    stored = read_folder(path) if path.is_dir() else read_file(path)
    try:
        if stored.config is not None:
            read_config(stored.config)  # says best what another program's model is
        weights = translate(stored.tensors)
        weights.left_out += stored.left_out
        return _assemble(stored, weights, name)
    except (WeightsError, CheckpointError, ConfigError) as error:
        raise WeightsError(f"{stored.path}: {error}") from error


def _load_adapted(folder: Path, name: str) -> Checkpoint:
    """Load an adapter's base model and add the adapter to it."""
    place = adapter.base_of(folder)
    try:
        base = _load(_relative(place, folder), adapters=False)
    except (WeightsError, CheckpointError, ConfigError) as error:
        looked = f"base_model_name_or_path in {adapter.CONFIG}; looked for here, in the adapter and beside it"
        raise WeightsError(f"{folder}: expected its base model {place[:80]!r} ({looked}): {error}") from error
    changed = adapter.merge(folder, entries_of(base.weights), base.mapped)
    form = f"{len(changed)} weights changed by a LoRA adapter on {name_of(base)}"
    weights = as_weights({**entries_of(base.weights), **changed})
    tied = base.config.tie_word_embeddings and "lm_head.weight" not in changed
    config = dataclasses.replace(base.config, tie_word_embeddings=tied)
    return dataclasses.replace(base, config=config, weights=weights, about={**base.about, "base": name, "form": form})


def _relative(base: str, folder: Path) -> str:
    """Return an adapter's base, which may be a place relative to the adapter's own."""
    revision = adapter.revision_of(folder)
    with contextlib.suppress(OSError, ValueError):  # too long for a file system: `load` says so
        if Path(base).exists():
            return base
        for beside in (folder / base, folder.resolve().parent / base):
            if beside.exists():
                return str(beside)
    name = REPOSITORIES.get(canonical_name(base), base)
    return f"{name}@{revision}" if revision and hub.is_repository(name) else base


def _assemble(stored: Stored, weights: Weights, name: str) -> Checkpoint:
    """Put tensors and facts together: shape, head, vocabulary, template."""
    tensors, notes = weights.tensors, [weights.describe()]
    config = _config(stored, tensors)
    vocabulary = Tokenizer.gpt2().vocab_size
    if config.vocab_size < vocabulary:
        raise WeightsError(
            f"expected GPT-2's {vocabulary} tokens, found {config.vocab_size}: another tokenizer's model"
        )
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is None and stored.config is not None and not stored.config.get("tie_word_embeddings", True):
        raise WeightsError("expected lm_head.weight, which config.json says is not the embedding, found none")
    if head is not None and (wte is None or not equal(head, wte, stored.mapped)):
        tensors["lm_head.weight"] = head
        config = dataclasses.replace(config, tie_word_embeddings=False)
        notes.append("its output head is not the embedding")
    if stored.config is None and stored.shape.get("n_head") is None:
        notes.append(f"{config.n_head} heads assumed, one for {HEAD_SIZE} of the width")
    checked = checkpoint.check_weights(config, {**tensors, **weights.computed}, stored.mapped)
    if config.vocab_size > vocabulary:  # rows that no text can spell, added as padding
        notes.append(f"{config.vocab_size - vocabulary} rows of padding cut off")
        checked |= {key: tensors[key][:vocabulary] for key in ("wte.weight", "lm_head.weight") if key in checked}
        config = dataclasses.replace(config, vocab_size=vocabulary)
    about = {"base": name, "form": "; ".join(notes)}
    return Checkpoint(config, as_weights(checked), _template(stored), about=about, mapped=stored.mapped)


def _config(stored: Stored, tensors: dict[str, Any]) -> GPT2Config:
    """Return the shape: what the tensors show, and what stands beside them."""
    if stored.config is not None:
        return read_config(stored.config)
    wte, wpe = tensors.get("wte.weight"), tensors.get("wpe.weight")
    if wte is None or wpe is None or wte.dim() != 2 or wpe.dim() != 2:
        raise WeightsError("expected the embeddings wte.weight and wpe.weight, found no such matrices")
    heads = stored.shape.get("n_head")
    if heads is None and wte.size(1) % HEAD_SIZE:
        raise WeightsError(f"the number of heads is unknown and {wte.size(1)} is not a multiple of {HEAD_SIZE}")
    layers = {key.split(".")[1] for key in tensors if key.startswith("h.")}
    found = {"n_layer": len(layers), "n_embd": wte.size(1), "n_ctx": wpe.size(0)}
    for fact, value in found.items():
        if stored.shape.get(fact) not in (None, value):
            raise WeightsError(
                f"expected {fact} {stored.shape[fact]!r}, which stands beside the weights, found {value}"
            )
    return GPT2Config(n_head=wte.size(1) // HEAD_SIZE if heads is None else heads, vocab_size=wte.size(0), **found)


def read_config(data: dict[str, Any]) -> GPT2Config:
    """Translate a transformers config.json; raises WeightsError for another architecture or an unknown variant."""
    if data.get("model_type") != "gpt2":
        raise WeightsError(f"config.json: expected model_type gpt2, found {data.get('model_type')!r}")
    plain = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, expected in plain.items():
        if data.get(key, expected[0]) not in expected:
            raise WeightsError(f"config.json: {key}: expected {expected[0]!r} as in GPT-2, found {data[key]!r}")
    n_embd = data.get("n_embd", 768)
    if type(n_embd) is int and data.get("n_inner") not in (None, 4 * n_embd):
        raise WeightsError(f"config.json: n_inner: expected {4 * n_embd} as in GPT-2, found {data['n_inner']!r}")
    return GPT2Config(
        n_layer=data.get("n_layer", 12),
        n_head=data.get("n_head", 12),
        n_embd=n_embd,
        n_ctx=data.get("n_positions") or data.get("n_ctx") or 1024,
        vocab_size=data.get("vocab_size", 50257),
        layer_norm_epsilon=data.get("layer_norm_epsilon", 1e-5),
    )


def _template(stored: Stored) -> Template:
    """Return how such a model was taught to talk: DialoGPT says so in its config, all others never were."""
    tasks = (stored.config or {}).get("task_specific_params")
    return TEMPLATES["dialogpt" if isinstance(tasks, dict) and "conversational" in tasks else "few-shot"]


def fresh(name: str, seed: int = 0) -> Checkpoint:
    """Return a released size with random weights, to train from nothing or to measure."""
    config = MODEL_SIZES[canonical_name(name)]
    weights = {n: t.detach() for n, t in GPT2(config).init_weights(seed).state_dict().items()}
    return Checkpoint(config, weights, TEMPLATES["few-shot"], about={"base": f"{name}, random weights"})


def name_of(loaded: Checkpoint) -> str:
    """Return what a model calls itself."""
    return str(loaded.about.get("name") or loaded.about.get("base") or "a model without a name")


def describe(loaded: Checkpoint) -> str:
    """Return one line about a model: where it comes from and its size."""
    c = loaded.config
    millions = loaded.count() / 1e6
    form = f" ({loaded.about['form']})" if "form" in loaded.about else ""
    return (
        f"{name_of(loaded)}: {millions:.1f} M parameters, {c.n_layer} layers, {c.n_embd} wide, context {c.n_ctx}{form}"
    )
