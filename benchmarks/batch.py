"""Many answers at once: tokens per second of all together, against transformers, CTranslate2 and llama.cpp.

The same weights, prompts of 32 tokens, 64 new ones each, greedy. Every measurement runs in its own process, peers in
turn, several rounds; medians are printed as JSON lines with the ratio of ours to each. `--streams 8,32` and
`--form int8` choose what is measured.
"""

from __future__ import annotations

import json
import statistics
import time

from common import interleave, random_ids, report
from peers import FORMS, Run, installed, make_files, open_peer, our_runtime, peer_parser

PROMPT, NEW = 32, 64
OURS = "gpt2chat"
COMPARED = {  # forms of about the same accuracy
    "int8": [("ctranslate2", "int8"), ("llama.cpp", "int8"), ("transformers", "bfloat16"), ("llama.cpp", "bfloat16")],
    "bfloat16": [("transformers", "bfloat16"), ("llama.cpp", "bfloat16")],
    "float32": [("transformers", "float32"), ("ctranslate2", "float32"), ("llama.cpp", "float32")],
}


def ours(form: str, size: str, streams: int) -> Run:
    """Load the same weights into the engine; return what decodes greedily with it."""
    from gpt2chat.engine import Engine
    from gpt2chat.sampling import GenerationConfig

    engine = Engine(our_runtime(form, size), streams=streams, share=False, draft="none")

    def run(prompts: list[list[int]], new: int) -> float:
        began = time.perf_counter()
        answers = [engine.submit(prompt, GenerationConfig(temperature=0, max_new_tokens=new)) for prompt in prompts]
        found = [list(answer) for answer in answers]
        seconds = time.perf_counter() - began
        if any(len(ids) != new for ids in found):
            raise SystemExit(f"expected {new} tokens of each")
        return seconds

    return run


def worker(peer: str, form: str, size: str, threads: str, streams: str) -> None:
    """Measure one; decoding speed is the tokens beyond the first of each over the time beyond all first ones."""
    import torch

    torch.set_num_threads(int(threads))
    count = int(streams)
    run = ours(form, size, count) if peer == OURS else open_peer(peer, form, size, int(threads), count)
    prompts = [random_ids(PROMPT, number) for number in range(count)]
    run(prompts, 4)
    first = statistics.median(run(prompts, 1) for _ in range(3))
    whole = statistics.median(run(prompts, NEW) for _ in range(3))
    figures = {"decode_tok_s": count * (NEW - 1) / (whole - first), "total_tok_s": count * NEW / whole}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def main() -> None:
    """Compare; or, with --worker, measure one."""
    parser = peer_parser(__doc__, ("PEER", "FORM", "SIZE", "THREADS", "STREAMS"), COMPARED)
    parser.add_argument("--streams", default="8,16,32")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    make_files(arguments.size)
    for form in arguments.form or ["int8"]:
        for streams in arguments.streams.split(","):
            pairs = [(OURS, form), *(pair for pair in COMPARED[form] if installed(pair[0]))]
            where = (arguments.size, arguments.threads, streams)
            variants = {f"{peer} {FORMS[kind].get(peer, kind)}": (peer, kind, *where) for peer, kind in pairs}
            medians = interleave(__file__, variants, arguments.rounds)
            mine = f"{OURS} {form}"
            report(f"decode_tok_s, {arguments.size}, {streams} streams", medians, "decode_tok_s", mine)


if __name__ == "__main__":
    main()
