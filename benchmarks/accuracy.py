"""What each form of the weights costs: error of the logits at 124M with random weights, perplexity of the demo model.

One JSON line per form: `logit_error` is the norm of the difference to float32 over that of float32, of all logits
behind 64 random ids; `perplexity_change` is that of the demo on data/guide.txt or another `--text`, and `own_change`
that on texts the demo writes itself, others than int4 is calibrated on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from common import random_ids
from torch import Tensor
from torch.nn.functional import cross_entropy

from gpt2chat import pretrained
from gpt2chat.calibration import own_texts
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.decoding import Choice, choose, runtime_of
from gpt2chat.evaluation import text_perplexity
from gpt2chat.runtime import Runtime
from gpt2chat.tokenizer import Tokenizer

GUIDE = Path(__file__).resolve().parent.parent / "data" / "guide.txt"
FORMS = {
    "fp32": ("float32", "none"),
    "bf16": ("bfloat16", "none"),
    "int8": ("auto", "int8"),
    "int4": ("auto", "int4"),
}


def logits(loaded: Checkpoint, choice: Choice) -> object:
    """Return all logits (64, V) behind random ids."""
    runtime = runtime_of(loaded, choice)
    return runtime.forward(random_ids(64, 0), runtime.new_cache(), 64).clone()


def own_perplexity(runtime: Runtime, texts: Tensor) -> float:
    """Return the perplexity per token of texts (rows, length)."""
    losses = []
    for row in texts:
        scores = runtime.forward(row[:-1].tolist(), runtime.new_cache(), len(row) - 1)
        losses.append(cross_entropy(scores, row[1:]))
    return float(torch.stack(losses).mean().exp())


def main() -> None:
    """Print one line per form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--text", type=Path, default=GUIDE)
    arguments = parser.parse_args()
    fresh, demo, text = pretrained.fresh(arguments.size), pretrained.load("demo"), arguments.text.read_text("utf-8")
    end_id, exact = Tokenizer.gpt2().end_id, {}
    texts = own_texts(runtime_of(demo, choose("cpu", *FORMS["fp32"])), end_id, first_seed=1000)
    for form, (dtype, quantize) in FORMS.items():
        choice = choose("cpu", dtype, quantize)
        scores = logits(fresh, choice)
        runtime = runtime_of(demo, choice)
        perplexity, own = text_perplexity(runtime, Tokenizer.gpt2(), text).per_token, own_perplexity(runtime, texts)
        exact = exact or {"scores": scores, "perplexity": perplexity, "own": own}
        error = (scores - exact["scores"]).norm() / exact["scores"].norm()
        figures = {"logit_error": round(float(error), 5), "perplexity": round(perplexity, 3)}
        figures["perplexity_change"] = round(perplexity / exact["perplexity"] - 1, 5)
        figures["own_change"] = round(own / exact["own"] - 1, 5)
        print(json.dumps({"bench": "accuracy", "size": arguments.size, "mode": form, **figures}))


if __name__ == "__main__":
    main()
