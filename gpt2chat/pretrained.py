"""A model's name or place -> `Checkpoint`: the released sizes, hub repositories, folders, `.pt` files, the demo."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.errors import CheckpointError, ConfigError, WeightsError
from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config
from gpt2chat.tokenizer import Tokenizer

DEMO = "demo"
DEFAULT_MODEL = "gpt2-small (124M)"
# The released sizes: our names -> hub repository.
REPOSITORIES = {
    "gpt2-small (124M)": "openai-community/gpt2",
    "gpt2-medium (355M)": "openai-community/gpt2-medium",
    "gpt2-large (774M)": "openai-community/gpt2-large",
    "gpt2-xl (1558M)": "openai-community/gpt2-xl",
}
FILES = ("config.json", "model.safetensors")
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


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
    """Load a model: `demo`, a released size, a `.pt` file, a Hugging Face folder, or a hub repository `owner/name`.

    Raises WeightsError, CheckpointError or ConfigError with what was expected and what to do.
    """
    name = canonical_name(name)
    if name == DEMO:
        with resources.as_file(resources.files("gpt2chat").joinpath("assets/demo.pt")) as path:
            return checkpoint.load(path)
    path = Path(name)
    try:
        folder, file = path.is_dir(), path.is_file() or path.suffix == ".pt"
    except (OSError, ValueError) as error:  # a name too long for a file system, a NUL
        raise ConfigError(f"model: {name[:40]!r}… cannot be a file name: {error}") from error
    if folder:
        return load_folder(path)
    if file:
        return checkpoint.load(path)
    if name in REPOSITORIES:
        return load_folder(_download(REPOSITORIES[name], name), name)
    if _is_repository(name):
        return load_folder(_download(name, name), name)
    close = difflib.get_close_matches(name.lower(), [DEMO, *SHORT_FORMS], n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"model: {name!r} is not known: {meant}Expected {DEMO}, {', '.join(map(repr, MODEL_SIZES))}, a hub repository "
        "such as distilbert/distilgpt2, a Hugging Face folder, or a .pt file that exists"
    )


def _is_repository(name: str) -> bool:
    allowed = all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in name.split("/"))
    return allowed and (name.count("/") == 1 or name in ("distilgpt2",)) and not name.startswith((".", "/"))


def _download(repository: str, name: str) -> Path:
    """Return the folder of the hub cache with the repository's files, downloading what is missing."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise WeightsError(f"model: {name!r}: the hub has no public repository {repository}") from error
    except LocalEntryNotFoundError:
        reason = f"{constants.ENDPOINT} cannot be reached and they are not in the cache"
        raise _missing(name, repository, reason) from None  # a hundred lines of network libraries
    except Exception as error:  # the hub client passes on whatever its network libraries raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _missing(name, repository, f"the download failed ({reason})") from error
    absent = [file for file in FILES if not (folder / file).is_file()]
    if absent:
        raise _missing(name, repository, f"{' and '.join(absent)} is not in the cache or not in the repository")
    return folder


def _missing(name: str, repository: str, reason: str) -> WeightsError:
    return WeightsError(
        f"model: the weights of {name!r} are not here: {reason}. Expected {' and '.join(FILES)} of {repository}: put "
        f"them into a folder and pass it (--model FOLDER), or go on without a network with the built-in model: "
        f'--model {DEMO}, GPT2Chatbot("{DEMO}")'
    )


def load_folder(folder: Path, name: str | None = None) -> Checkpoint:
    """Read a Hugging Face folder of GPT-2 architecture: config.json and model.safetensors, tied head or not."""
    for file in FILES:
        if not (folder / file).is_file():
            here = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise WeightsError(f"{folder}: expected {' and '.join(FILES)}, found {here}")
    config = read_config(folder / FILES[0])
    weights = _read_safetensors(folder / FILES[1])
    vocabulary = Tokenizer.gpt2().vocab_size
    if config.vocab_size < vocabulary:
        raise WeightsError(f"{folder}: expected GPT-2's {vocabulary} tokens, found {config.vocab_size}")
    try:
        checked = checkpoint.check_weights(config, to_our_names(weights))
        if config.vocab_size > vocabulary:  # rows that no text can spell, added as padding
            checked["wte.weight"] = checked["wte.weight"][:vocabulary].clone()
            config = dataclasses.replace(config, vocab_size=vocabulary)
    except CheckpointError as error:
        raise WeightsError(f"{folder / FILES[1]}: {error}") from error
    return Checkpoint(config, checked, TEMPLATES["few-shot"], about={"base": name or str(folder)})


def read_config(path: Path) -> GPT2Config:
    """Translate a transformers config.json; raises WeightsError for another architecture or an unknown variant."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or data.get("model_type") != "gpt2":
        found = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise WeightsError(f"{path}: expected model_type gpt2, found {found!r}")
    plain = {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    for key, expected in plain.items():
        if data.get(key, expected) != expected:
            raise WeightsError(f"{path}: {key}: expected {expected!r} as in GPT-2, found {data[key]!r}")
    n_embd = data.get("n_embd", 768)
    if type(n_embd) is int and data.get("n_inner") not in (None, 4 * n_embd):
        raise WeightsError(f"{path}: n_inner: expected {4 * n_embd} as in GPT-2, found {data['n_inner']!r}")
    return GPT2Config(
        n_layer=data.get("n_layer", 12),
        n_head=data.get("n_head", 12),
        n_embd=n_embd,
        n_ctx=data.get("n_positions") or data.get("n_ctx") or 1024,
        vocab_size=data.get("vocab_size", 50257),
        layer_norm_epsilon=data.get("layer_norm_epsilon", 1e-5),
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read, perhaps cut short: {error}") from error


def to_our_names(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate released names and layouts (linear weights (in, out)) to ours ((out, in)).

    The causal masks that old files carry and the tied head are left out; everything else keeps its name.
    """
    weights = {}
    for name, tensor in released.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        weights[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    return weights


def to_released_names(model: GPT2) -> dict[str, Tensor]:
    """Translate our names and layouts to the released ones; the inverse of `to_our_names`."""
    return {
        name: tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }


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
    millions = sum(tensor.numel() for tensor in loaded.weights.values()) / 1e6
    return f"{name_of(loaded)}: {millions:.1f} M parameters, {c.n_layer} layers, {c.n_embd} wide, context {c.n_ctx}"
