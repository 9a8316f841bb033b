"""One answer at a time: decoding and prefill against transformers, CTranslate2 and llama.cpp with the same weights.

Every measurement runs in its own process, peers in turn, several rounds; medians are printed as JSON lines with the
ratio of ours to each. `--size 355M` measures another size, `--form int8` one form alone.
"""

from __future__ import annotations

import json
import statistics
import time

from common import interleave, random_ids, report
from peers import FORMS, Run, installed, make_files, open_peer, our_runtime, peer_parser

PROMPT, NEW, LONG = 32, 128, 512
OURS = "gpt2chat"


def ours(form: str, size: str) -> Run:
    """Load the same weights into the decoder; return what decodes greedily with it."""
    from gpt2chat.generation import Decoder
    from gpt2chat.sampling import GenerationConfig

    decoder = Decoder(our_runtime(form, size))

    def run(prompts: list[list[int]], new: int) -> float:
        decoder.cache.truncate(0)
        began = time.perf_counter()
        found = list(decoder.generate(prompts[0], GenerationConfig(temperature=0, max_new_tokens=new), ()))
        seconds = time.perf_counter() - began
        if len(found) != new:
            raise SystemExit(f"expected {new} tokens, got {len(found)}")
        return seconds

    return run


def worker(peer: str, form: str, size: str, threads: str) -> None:
    """Measure one; decoding speed is (NEW - 1) tokens over the time beyond the first."""
    import torch

    torch.set_num_threads(int(threads))
    began = time.perf_counter()
    run = ours(form, size) if peer == OURS else open_peer(peer, form, size, int(threads))
    loaded = time.perf_counter() - began
    prompt, long = [random_ids(PROMPT, 0)], [random_ids(LONG, 1)]
    run(prompt, 8)
    run(long, 1)
    first = statistics.median(run(prompt, 1) for _ in range(5))
    whole = statistics.median(run(prompt, NEW) for _ in range(3))
    prefill = statistics.median(run(long, 1) for _ in range(5))
    figures = {"decode_tok_s": (NEW - 1) / (whole - first), "prefill_tok_s": LONG / prefill, "load_s": loaded}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def main() -> None:
    """Compare; or, with --worker, measure one."""
    arguments = peer_parser(__doc__, ("PEER", "FORM", "SIZE", "THREADS"), FORMS).parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    make_files(arguments.size)
    for form in arguments.form or FORMS:
        peers = [OURS, *(peer for peer in FORMS[form] if installed(peer))]
        variants = {peer: (peer, form, arguments.size, arguments.threads) for peer in peers}
        medians = interleave(__file__, variants, arguments.rounds)
        for key in ("decode_tok_s", "prefill_tok_s"):
            report(f"{key}, {arguments.size}, {form}, one stream", medians, key, OURS)


if __name__ == "__main__":
    main()
