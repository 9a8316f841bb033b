"""Decoding speed of one stream with the KV cache at 124M, against transformers' generate in the same type."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from common import interleave, random_ids, report

PROMPT, NEW = 32, 128


def ours(dtype: torch.dtype) -> Callable[[int], None]:
    """Return a function that decodes so many tokens with a fresh cache."""
    from gpt2chat import pretrained
    from gpt2chat.generation import Decoder
    from gpt2chat.sampling import GenerationConfig

    decoder = Decoder(pretrained.fresh("124M").build_model(dtype))

    def decode(count: int) -> None:
        decoder.cache.truncate(0)
        list(decoder.generate(random_ids(PROMPT, 0), GenerationConfig(temperature=0, max_new_tokens=count), ()))

    return decode


def theirs(dtype: torch.dtype) -> Callable[[int], None]:
    """Return the same by transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).to(dtype).eval()
    ids = torch.tensor([random_ids(PROMPT, 0)])

    def decode(count: int) -> None:
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 50256, "use_cache": True}
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, **options
            )

    return decode


def worker(variant: str, dtype: str) -> None:
    """Measure one variant; decoding speed is (NEW - 1) tokens over the time beyond the first token."""
    decode = (ours if variant == "ours" else theirs)(getattr(torch, dtype))
    decode(8)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        decode(count)
        return time.perf_counter() - began

    first = statistics.median(seconds(1) for _ in range(3))
    whole = statistics.median(seconds(NEW) for _ in range(3))
    print(json.dumps({"decode_tok_s": round((NEW - 1) / (whole - first), 1), "first_token_s": round(first, 4)}))


def main() -> None:
    """Compare; or, with --worker, measure one variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, metavar=("VARIANT", "DTYPE"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    for dtype in ("float32", "bfloat16"):
        medians = interleave(__file__, {name: (name, dtype) for name in ("ours", "transformers")}, arguments.rounds)
        report(f"decode 124M, {dtype}, one stream", medians, "decode_tok_s", "ours")


if __name__ == "__main__":
    main()
