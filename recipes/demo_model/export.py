"""Turn a training state into the shipped demo.pt, measure it, and write its model card."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from train import CONFIG, FREQUENT, ROWS, Corpus, heldout_loss

from gpt2chat import checkpoint, pretrained
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.hardware import pick_dtype
from gpt2chat.model import GPT2
from gpt2chat.sampling import GenerationConfig
from gpt2chat.templates import TEMPLATES

# Two turns each; the answers in the card are the first ones drawn, whatever they are.
TALKS = [
    ("Hello! How are you today?", "What are you doing this weekend?"),
    ("Do you like music?", "Which band should I listen to?"),
    ("I love scary movies.", "What is the scariest one you know?"),
    ("Tell me a story about a dog.", "What happened next?"),
    ("What is the capital of France?", "Have you been there?"),
    ("Good morning!", "I am a bit tired."),
    ("Who are you?", "Are you a person?"),
    ("I am learning to cook.", "What should I try first?"),
    ("Do you watch football?", "Who will win this year?"),
    ("My cat is called Tom.", "What is my cat called?"),
    ("I'd like a coffee, please.", "With milk. Thank you!"),
    ("Have you read any good books lately?", "What was it about?"),
    ("It is raining again.", "I wanted to go for a walk."),
    ("What is two plus two?", "And three plus three?"),
    ("I feel sad today.", "Thank you for listening."),
    ("Recommend a game to me.", "Is it hard?"),
    ("What do you think about space?", "Would you go to Mars?"),
    ("Can you write a poem?", "Make it about the sea."),
    ("I have a new job!", "I will be a teacher."),
    ("Thanks for talking with me.", "Goodbye!"),
]


def transcripts(count: int, match: bool) -> str:
    """Let the shipped model answer, a fresh conversation and a seed per talk; with `match` also what was written."""
    bot = GPT2Chatbot("demo", generation=GenerationConfig(max_new_tokens=60), match=match)
    parts = []
    for seed, questions in enumerate(TALKS[:count]):
        bot.reset()
        lines = [f"User: {q}\nBot: {bot.chat(q, seed=seed).strip()}" for q in questions]
        parts.append("```text\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts)


@torch.inference_mode()
def rare_share(model: GPT2, corpus: Corpus, frequent: np.ndarray) -> tuple[float, float]:
    """Return the mean probability the model gives to rare ids on held-out text, and their true share there."""
    mask = torch.ones(CONFIG.vocab_size, dtype=torch.bool)
    mask[torch.from_numpy(frequent)] = False
    given, true, count = 0.0, 0, 0
    for number in range(min(4, corpus.rows // ROWS)):
        ids, targets, positions, allowed = corpus.batch(number)
        hidden = model.hidden_states(ids, positions=positions, mask=allowed)[targets != -100]
        wanted = targets[targets != -100]
        for part in hidden.split(512):
            given += model.logits(part).float().softmax(-1)[:, mask].sum().item()
        true += int(mask[wanted].sum())
        count += len(wanted)
    return given / count, true / count


def measure(model: GPT2, packed: GPT2, corpus: Path) -> dict:
    """Return the figures of the card."""
    heldout = Corpus(corpus / "heldout")
    batches = heldout.rows // ROWS
    dtype = pick_dtype("float32", model.device)
    counts = np.bincount(np.memmap(corpus / "train.bin", np.uint16, "r"), minlength=CONFIG.vocab_size)
    given, true = rare_share(packed, heldout, np.argsort(-counts, kind="stable")[:FREQUENT])
    return {
        "heldout_float32": heldout_loss(model, heldout, dtype, batches),
        "heldout_int8": heldout_loss(packed, heldout, dtype, batches),
        "heldout_tokens": batches * ROWS * CONFIG.n_ctx,
        "rare_given": given,
        "rare_true": true,
    }


def by_source(corpus: Path, models: Sequence[GPT2]) -> dict[str, list[float]]:
    """Return the held-out loss of each model on each source that is long enough to tell."""
    found = {}
    for path in sorted(corpus.glob("heldout-*.bin")):
        heldout = Corpus(path.with_suffix(""))
        if batches := min(8, heldout.rows // ROWS):
            dtype = pick_dtype("float32", models[0].device)
            found[path.stem.partition("-")[2]] = [heldout_loss(model, heldout, dtype, batches) for model in models]
    return found


def card(figures: dict, manifest: dict, state: dict, parameters: int, size: int) -> str:
    """Return MODEL_CARD.md."""
    rows = [
        f"| {s['name']} | {s['licence']} | {s['origin']} | {s['closing_tokens']:,} | {s['closing']} |"
        for s in manifest["sources"]
        if s["closing_tokens"]
    ]
    losses = [f"| {name} | {' | '.join(f'{loss:.2f}' for loss in pair)} |" for name, pair in figures["sources"].items()]
    template = (Path(__file__).parent / "CARD.md").read_text("utf-8")
    return template.format(
        parameters=f"{parameters / 1e6:.1f}",
        size=f"{size / 1e6:.1f}",
        closed=f"{state['closed']:,}",
        tokens=f"{state['closed'] * ROWS * CONFIG.n_ctx / 1e6:.1f}",
        hours=f"{state['seconds'] / 3600:.1f}",
        losses="\n".join(losses),
        loss=f"{figures['heldout_int8']:.3f}",
        perplexity=f"{np.exp(figures['heldout_int8']):.1f}",
        loss_float32=f"{figures['heldout_float32']:.3f}",
        heldout_tokens=f"{figures['heldout_tokens']:,.0f}",
        rare_given=f"{figures['rare_given']:.2%}",
        rare_true=f"{figures['rare_true']:.2%}",
        sources="\n".join(rows),
        transcripts=transcripts(len(TALKS), match=True),
        alone=transcripts(5, match=False),
    )


@click.command()
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Folder written by prepare.py.")
@click.option("--state", type=click.Path(path_type=Path), required=True, help="File written by train.py.")
@click.option("--before", help="A model to compare with, the one that was shipped before.")
@click.option("--assets", type=click.Path(path_type=Path), default="gpt2chat/assets", show_default=True)
def main(corpus: Path, state: Path, before: str | None, assets: Path) -> None:
    """Write ASSETS/demo.pt and ASSETS/MODEL_CARD.md; run from the root of the checkout."""
    trained = torch.load(state, weights_only=True)
    manifest = json.loads((corpus / "manifest.json").read_text("utf-8"))
    tokens = (trained["step"] + trained["closed"]) * ROWS * CONFIG.n_ctx
    about = {
        "name": "demo",
        "recipe": "recipes/demo_model",
        "tokens_seen": tokens,
        "licence": "MIT",
        "small_talk": True,
    }
    whole = Checkpoint(CONFIG, trained["model"], TEMPLATES["chat"], about={**about, "small_talk": True})
    checkpoint.save(whole, assets / "demo.pt", compact=True)
    packed = checkpoint.load(assets / "demo.pt")
    model = whole.build_model()
    figures = measure(model, packed.build_model(), corpus)
    others = [pretrained.load(before).build_model()] if before else []
    figures["sources"] = by_source(corpus, [*others, packed.build_model()])
    print(json.dumps(figures), file=sys.stderr)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    size = (assets / "demo.pt").stat().st_size
    text = card(figures, manifest, trained, parameters, size)
    (assets / "MODEL_CARD.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
