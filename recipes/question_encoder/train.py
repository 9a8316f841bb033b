"""Train the question encoder, measure it on groups that it has not seen, and write `encoder.safetensors`.

    python recipes/question_encoder/train.py --datasets DATASETS --work FOLDER               # judged on held-out ones
    python recipes/question_encoder/train.py --datasets DATASETS --work FOLDER --all --save  # from all groups, to ship

The loss is contrastive (van den Oord et al. 2018): of two questions of a group each must be nearer to the other than to
those of all other groups of the batch, half of the time groups of the same domains. How sure a match is comes from a
logistic regression on matches in tasks made of groups that the encoder has not seen, others left out as outside.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import click
import numpy as np
import torch
import torch.nn.functional as F
from groups import Faq, Group, concepts, faqs, intents, near_misses, out_of_scope, parted, small_talk, written
from safetensors.numpy import save_file
from torch import nn
from vectors import texts, word_vectors

from gpt2chat import matching
from gpt2chat.confidence import fitted
from gpt2chat.encoder import FILE, QuestionEncoder, narrow, runs, words
from gpt2chat.matching import Matcher

HERE = Path(__file__).parent
VOCABULARY, RUN_ROWS, WIDTH, HIDDEN, DIMENSION = 15_000, 4096, 128, 256, 256
STEPS, GROUPS, RATE, TEMPERATURE, DROPPED = 2400, 256, 1e-3, 0.1, 0.3
ANSWERED = 0.25  # of the pairs are a question and its answer
HURRIED, MISTYPED = 0.3, 0.4  # of the questions that are learnt, as people type
SMALL = frozenset(
    ("a", "an", "the", "is", "are", "was", "do", "does", "did", "i", "you", "we", "my", "your", "to", "of", "at", "for")
    + ("it", "that", "there", "can", "could", "may", "please")
)
MIX = (1.0, 0.5, 0.5)  # of meaning, words one by one, and spelling
FAR = "an answer that no domain has"
LISTS = 3  # times that the tasks made of firms' lists count, which are what people teach
JUDGED = 0.25  # of the groups, whose matches teach how sure a match is


Task = tuple[list[tuple[str, str]], list[tuple[str, str | None]]]  # to teach, and to ask with the right answer


class Network(nn.Module):
    """The encoder while it learns; `encoder.QuestionEncoder` computes the same from the file."""

    def __init__(self, spelt: Sequence[str], vectors: np.ndarray) -> None:
        super().__init__()
        self.rows = {word: row for row, word in enumerate(spelt, 1)}
        self.words = nn.Embedding(len(spelt) + 1, WIDTH)
        self.runs = nn.Embedding(RUN_ROWS + 1, WIDTH, padding_idx=0)
        self.weights = nn.Embedding(len(spelt) + 1, 1)
        self.skip = nn.Linear(WIDTH, DIMENSION, bias=False)
        self.into, self.out = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, DIMENSION)
        with torch.no_grad():
            self.words.weight[0] = 0
            self.words.weight[1:] = torch.from_numpy(vectors)
            nn.init.normal_(self.runs.weight, std=0.02)
            nn.init.zeros_(self.weights.weight)
        self._known: dict[str, list[tuple[int, list[int]]]] = {}

    def features(self, question: str) -> list[tuple[int, list[int]]]:
        """Return the row of each word, and the rows of its runs of characters."""
        if question not in self._known:
            split = words(question) or [""]
            self._known[question] = [(self.rows.get(w, 0), [n % RUN_ROWS + 1 for n in runs(w)]) for w in split]
        return self._known[question]

    def forward(self, questions: Sequence[str], dropped: float = 0.0) -> torch.Tensor:
        """Return unit vectors (N, DIMENSION); a share of the words is left out at random."""
        row, inside, begin, owner = list[int](), list[int](), list[int](), list[int]()
        for number, question in enumerate(questions):
            features = self.features(question)
            kept = [each for each in features if random.random() >= dropped] if len(features) > 2 else features
            for word, rows in kept or features:
                row.append(word)
                begin.append(len(inside))
                inside += rows
                owner.append(number)
        place = torch.tensor(row)
        spelling = F.embedding_bag(torch.tensor(inside or [0]), self.runs.weight, torch.tensor(begin), mode="mean")
        weight = self.weights(place).exp()
        vectors = (self.words(place) + spelling) * weight
        at, size = torch.tensor(owner), len(questions)
        sums = torch.zeros(size, WIDTH).index_add(0, at, vectors)
        sums = sums / (torch.zeros(size, 1).index_add(0, at, weight) + 1e-6).sqrt()
        normal = F.layer_norm(sums, (WIDTH,))
        return F.normalize(self.skip(normal) + self.out(F.gelu(self.into(normal), approximate="tanh")), dim=-1)

    def export(self, rarity: np.ndarray, sure: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tensors of the file."""
        tables = {"words": self.words.weight, "runs": self.runs.weight}
        tensors: dict[str, np.ndarray] = {}
        for name, table in tables.items():
            tensors[name], tensors[f"{name}.scale"] = narrow(table.detach().numpy())
        layer = {"skip": self.skip.weight, "into": self.into.weight, "into.bias": self.into.bias}
        layer |= {"out": self.out.weight, "out.bias": self.out.bias, "weights": self.weights.weight[:, 0]}
        tensors |= {name: part.detach().numpy().astype(np.float16) for name, part in layer.items()}
        spelling = "\n".join(self.rows).encode()
        tensors |= {"spelling": np.frombuffer(spelling, np.uint8), "rarity": rarity.astype(np.float16)}
        return tensors | {"mix": np.array(MIX, np.float32), "sure": sure.astype(np.float32)}


def typed(question: str, rng: random.Random) -> str:
    """Return a question as somebody types it in a hurry: small words left out, or a letter amiss."""
    split = question.split()
    if rng.random() < HURRIED:
        kept = [word for word in split if word.lower().strip("?,.") not in SMALL]
        split = kept if len(kept) > 1 else split
    long = [at for at, word in enumerate(split) if len(word) > 3]
    if long and rng.random() < MISTYPED:
        at = rng.choice(long)
        word, place = split[at], rng.randrange(1, len(split[at]) - 1)
        swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        doubled, missing = word[:place] + word[place] + word[place:], word[:place] + word[place + 1 :]
        split[at] = rng.choice((swapped, doubled, missing))
    return " ".join(split)


def pair_of(group: Group) -> list[str]:
    """Return two questions of a group, in part a question and the answer."""
    if group.answer and random.random() < ANSWERED:
        return [group.answer, random.choice(group.questions)]
    return random.sample(group.questions, 2)


def batches(groups: Sequence[Group], steps: int) -> list[list[int]]:
    """Return the groups of each step: in turn those of some whole domains, and any."""
    domains: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        domains.setdefault(group.domain, []).append(number)
    found = list[list[int]]()
    for step in range(steps):
        chosen = list[int]()
        for domain in random.sample(list(domains), len(domains)) if step % 2 == 0 else ():
            chosen += random.sample(domains[domain], min(24, len(domains[domain])))
            if len(chosen) >= GROUPS:
                break
        found.append(chosen or random.sample(range(len(groups)), min(GROUPS, len(groups))))
    return found


def train(network: Network, groups: Sequence[Group], steps: int = STEPS, seed: int = 0) -> None:
    """Teach it to tell the groups apart."""
    torch.manual_seed(seed)
    random.seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    began = time.perf_counter()
    for step, chosen in enumerate(batches(groups, steps)):
        for part in optimizer.param_groups:
            part["lr"] = RATE * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 - step / steps))
        both = [pair_of(groups[number]) for number in chosen]
        asked = [pair[0] for pair in both] + [typed(pair[1], random) for pair in both]  # type: ignore[arg-type]
        vectors = network(asked, DROPPED)
        scores = vectors[: len(both)] @ vectors[len(both) :].T / TEMPERATURE
        target = torch.arange(len(both))
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1} loss {loss.item():.3f} {time.perf_counter() - began:.0f} s", file=sys.stderr)


def task(groups: Sequence[Group], phrasings: int, asked: int, outside: int, rng: random.Random) -> Task:
    """Return pairs to teach, and (question, answer or None) to ask: of groups left out the answer is none."""
    order = rng.sample(list(groups), len(groups))
    taught, questions = list[tuple[str, str]](), list[tuple[str, str | None]]()
    for number, group in enumerate(order):
        mine = rng.sample(group.questions, min(len(group.questions), phrasings + asked))
        if number < outside:
            questions += [(question, None) for question in mine[:asked]]
        else:
            count, answer = min(phrasings, len(mine) - 1), group.answer or f"answer {number}"
            taught += [(question, answer) for question in mine[:count]]
            questions += [(question, answer) for question in mine[count:]]
    return taught, questions


def accuracy(encoder: QuestionEncoder, tasks: Sequence[Task]) -> dict[str, float]:
    """Return shares: right among all, right by spelling alone, right among those answered, answered, refused."""
    count = dict.fromkeys(
        ("asked", "right", "word_list", "given", "given_right", "near", "near_refused", "far", "far_refused"), 0
    )
    for taught, questions in tasks:
        matcher = Matcher(taught, encoder)
        for question, answer in questions:
            best = matcher.match(question)[0]
            sure = best.confidence >= matcher.threshold
            if answer not in matcher.answers:  # of the same domain, or of any
                kind = "near" if answer is None else "far"
                count[kind] += 1
                count[f"{kind}_refused"] += not sure
                continue
            count["asked"] += 1
            count["right"] += best.answer == answer
            count["word_list"] += matcher.spelling.nearest(question).answer == answer
            count["given"] += sure
            count["given_right"] += sure and best.answer == answer
    asked = max(1, count["asked"])
    row = {"right": count["right"] / asked, "word_list": count["word_list"] / asked, "given": count["given"] / asked}
    row |= {"given_right": count["given_right"] / max(1, count["given"])}
    row |= {"kept_of_right": count["given_right"] / max(1, count["right"])}
    row |= {f"{kind}_refused": count[f"{kind}_refused"] / max(1, count[kind]) for kind in ("near", "far")}
    return {name: round(value, 3) for name, value in row.items()}


def suites(judged: dict[str, list[Group]], general: Sequence[str], seed: int = 7) -> dict[str, list[Task]]:
    """Return tasks of each kind of groups, with one and with five phrasings taught."""
    rng, found = random.Random(seed), {}
    for name, groups in judged.items():
        domains: dict[str, list[Group]] = {}
        for group in groups:
            domains.setdefault(group.domain, []).append(group)
        for phrasings in (1, 5):
            tasks = list[Task]()
            for number in range(8):
                domain = domains[sorted(domains)[number % len(domains)]]
                some = rng.sample(domain, min(len(domain), 24))
                taught, asked = task(some, phrasings, 8, max(1, len(some) // 6), rng)
                tasks.append((taught, asked + [(question, FAR) for question in rng.sample(general, 20)]))
            found[f"{name} {phrasings}"] = tasks
    return found


def faq_tasks(lists: Sequence[Faq], general: Sequence[str], seed: int = 0) -> list[Task]:
    """Return a task for each list: its first questions to teach, all others to ask, with some of any domain."""
    rng, tasks = random.Random(seed), list[Task]()
    for one in lists:
        taught = [(group.questions[0], group.answer) for group in one.groups]
        asked: list[tuple[str, str | None]] = [(q, group.answer) for group in one.groups for q in group.questions[1:]]
        asked += [(question, None) for question in one.outside]
        tasks.append((taught, asked + [(question, FAR) for question in rng.sample(list(general), 8)]))
    return tasks


def in_cipher(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks in letters that the encoder cannot read, a language of its own to it."""
    cipher = "".join(chr(0x430 + at) for at in range(len(ascii_lowercase)))
    turned = str.maketrans(ascii_lowercase + ascii_lowercase.upper(), cipher + cipher.upper())

    def turn(text: str | None) -> str | None:
        return text if text is None or text == FAR else text.translate(turned)

    return [
        ([(str(turn(q)), str(turn(a))) for q, a in taught], [(str(turn(q)), turn(a)) for q, a in asked])
        for taught, asked in tasks
    ]


def beside(misses: dict[str, list[tuple[str, str, str]]]) -> list[Task]:
    """Return a task for each domain: questions to teach, others that find them, and near misses to decline."""
    tasks = list[Task]()
    for rows in misses.values():
        taught, asked = list[tuple[str, str]](), list[tuple[str, str | None]]()
        for number, (question, same, other) in enumerate(rows):
            taught.append((question, f"answer {number}"))
            asked += [(same, f"answer {number}"), (other, None)]
        tasks.append((taught, asked))
    return tasks


def confidence_of(encoder: QuestionEncoder, tasks: Sequence[Task]) -> np.ndarray:
    """Return the weights of a logistic regression: how likely the best match is right."""
    evidence, right = list[np.ndarray](), list[float]()
    for taught, questions in tasks:
        matcher = Matcher(taught, encoder)
        for question, answer in questions:
            rows, found = matcher.evidence(question, matcher.likenesses(question))
            for row, figures in zip(rows[:2], found, strict=False):
                evidence.append(figures)
                right.append(float(matcher.pairs[row][1] == answer))
    return fitted(np.array(evidence), np.array(right))


@click.command(help=__doc__)
@click.option("--datasets", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Keeps word vectors between runs.")
@click.option("--all", "everything", is_flag=True, help="Learn from all groups; how sure a match is stays as judged.")
@click.option("--save", is_flag=True, help="Replace the encoder of the package.")
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--without", multiple=True, help="A kind of groups that is not learnt from: clinc, hwu64, …")
def main(datasets: Path, work: Path, everything: bool, save: bool, steps: int, without: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "vectors.npz"
    if not kept.exists():
        spelt, counts, vectors = word_vectors(texts(datasets, HERE.parent / "demo_model" / "data"), VOCABULARY, WIDTH)
        np.savez(kept, spelt=np.array(spelt), counts=counts, vectors=vectors)
    known = np.load(kept)
    spelt, counts = [str(word) for word in known["spelt"]], known["counts"]
    rarity = np.minimum(np.log(counts.sum() / counts), 12) / 12
    kinds = {"written": written(), "clinc": intents(datasets, "clinc"), "hwu64": intents(datasets, "hwu64")}
    kinds |= {"talk": small_talk(datasets), "words": concepts()}
    learnt, judged = list[Group](), dict[str, list[Group]]()
    for name, groups in kinds.items():
        if name in ("talk", "words"):
            learnt += groups
        elif name in without:
            judged[name] = groups
        else:
            mine, judged[name] = parted(groups, JUDGED, seed=1)
            learnt += mine
    general = out_of_scope(datasets)
    lists = random.Random(5).sample(faqs(), len(faqs()))
    apart = len(lists) // 3  # learnt from, for how sure a match is, to judge
    learnt += [group for one in lists[2 * apart :] for group in one.groups]
    network = Network(spelt, known["vectors"])
    train(network, learnt, steps)
    fair = QuestionEncoder(network.export(rarity, np.zeros((2, 1 + matching.EVIDENCE), np.float32)))
    listed = faq_tasks(lists[:apart], general[:300])
    fitting = [one for tasks in suites(judged, general[:300], seed=3).values() for one in tasks] + LISTS * listed
    sure = np.stack([confidence_of(fair, fitting), confidence_of(fair, in_cipher(fitting))])
    fair = QuestionEncoder(network.export(rarity, sure))
    figures = {name: accuracy(fair, tasks) for name, tasks in suites(judged, general[300:]).items()}
    figures["near misses"] = accuracy(fair, beside(near_misses()))
    listed = faq_tasks(lists[apart : 2 * apart], general[300:])
    figures |= {"lists": accuracy(fair, listed), "lists in cipher": accuracy(fair, in_cipher(listed))}
    print(json.dumps({"groups": len(learnt), "steps": steps, "sure": sure.round(2).tolist(), "heldout": figures}))
    if everything:
        network = Network(spelt, known["vectors"])
        listed_groups = [group for one in lists for group in one.groups]
        train(network, [group for groups in kinds.values() for group in groups] + listed_groups, steps)
    if save:
        save_file(network.export(rarity, sure), FILE)
        print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
