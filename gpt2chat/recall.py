"""How many taught answers come back: counted exactly, without generating any of them.

Greedy decoding gives a taught answer if and only if at each of its tokens, the end token included, the taught token is
the likeliest one behind the question and the taught tokens before it. So one forward pass over packed examples counts
what would otherwise take a pass for every token.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2chat.conversation import Example
from gpt2chat.data import collate, pack
from gpt2chat.hardware import autocast
from gpt2chat.loss import IGNORE, Batch
from gpt2chat.model import GPT2

ALL = 512  # answers up to which all are checked; of more of them ...
SAMPLE = 256  # ... so many, the same ones each time
LATER = 0.9  # share of the answers that must also come back in the middle of a conversation
MARGIN = 1.0  # logits by which a taught token leads where an answer counts as sure: int8 weights move them by less
TOGETHER = 128  # positions whose logits are in memory together
ROWS = 4


@dataclass(frozen=True)
class Recall:
    """How many of the answers that were checked come back to their question, and how many of these with a margin."""

    recalled: int
    checked: int
    sure: int
    later: int  # that come back behind other questions and answers; looked at once all surely come back alone
    taught: int  # answers there are; more than `checked` where a sample was checked

    @property
    def whole(self) -> bool:
        """Whether every answer that was checked comes back."""
        return self.recalled == self.checked

    @property
    def surely(self) -> bool:
        """Whether all come back with a margin, and most in the middle of a conversation."""
        return self.sure == self.checked and self.later >= LATER * self.checked

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON; those of a sample also say of how many."""
        sampled = {} if self.checked == self.taught else {"taught": self.taught}
        share = round(self.recalled / self.checked, 4)
        return {"recall": share, "recalled": self.recalled, "pairs": self.checked} | sampled

    def words(self) -> str:
        """Return it in words: 40 of 40, or 250 of 256 sampled of 10,000."""
        of = "" if self.checked == self.taught else f" sampled of {self.taught:,}"
        return f"{self.recalled:,} of {self.checked:,}{of}"


@dataclass(frozen=True)
class _Answer:
    """Where an answer is: its example, and the first and last but one of its ids; `asked` tells questions apart."""

    example: int
    begin: int
    end: int
    asked: int


class Quiz:
    """The taught answers that are checked, and how.

    A question that was taught several answers counts once: it has one greedy answer, which must be one of them. An
    answer that was cut off in the data has no end and is left out.
    """

    def __init__(self, examples: Sequence[Example], end_id: int, row_tokens: int) -> None:
        answers = [found for number, example in enumerate(examples) for found in _answers(number, example, end_id)]
        asked = list(dict.fromkeys(answer.asked for answer in answers))
        self.taught = len(asked)
        if len(asked) > ALL:
            chosen = set(random.Random(0).sample(asked, SAMPLE))
            answers = [answer for answer in answers if answer.asked in chosen]
        numbers = list(dict.fromkeys(answer.example for answer in answers))
        places = {number: place for place, number in enumerate(numbers)}
        self._examples = [examples[number] for number in numbers]
        self._answers = [(places[a.example], a.begin, a.end, a.asked) for a in answers]
        self._row_tokens, self._pad_id = row_tokens, end_id

    def __bool__(self) -> bool:
        return bool(self._answers)

    @property
    def tokens(self) -> int:
        """How many ids one check reads."""
        return sum(len(example.ids) for example in self._examples)

    def ask(self, model: GPT2, dtype: torch.dtype = torch.float32) -> Recall:
        """Count the answers that come back; the model is left in evaluation mode."""
        alone = self._best(self._leads(model, dtype, list(range(len(self._examples))), 0.0))
        recalled, sure = (sum(lead > least for lead in alone) for least in (0.0, MARGIN))
        later = 0
        if sure == len(alone):
            order = random.Random(1).sample(range(len(self._examples)), len(self._examples))
            later = sum(lead > 0 for lead in self._best(self._leads(model, dtype, order, 1.0)))
        return Recall(recalled, len(alone), sure, later, self.taught)

    @torch.no_grad()
    def _leads(self, model: GPT2, dtype: torch.dtype, order: list[int], join: float) -> list[Tensor]:
        """Return for each example by how much each of its targets leads, behind others with `join` 1."""
        model.eval()
        lengths = [len(example.ids) for example in self._examples]
        size = max([self._row_tokens, *lengths])
        leads: list[Tensor] = [torch.empty(0)] * len(lengths)
        rows = pack(lengths, order, size)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            batch = collate([[self._examples[i] for i in row] for row in part], self._pad_id, join, limit=size)
            with autocast(model.device, dtype):
                found = _leads(model, batch.to(model.device)).cpu()
            for r, row in enumerate(part):
                at = 0
                for i in row:
                    leads[i] = found[r, at : at + lengths[i] - 1]
                    at += lengths[i]
        return leads

    def _best(self, leads: Sequence[Tensor]) -> list[float]:
        """Return for each question by how much the best of its answers leads, at the token that leads least."""
        best: dict[int, float] = {}
        for example, begin, end, asked in self._answers:
            lead = float(leads[example][begin - 1 : end - 1].min())
            best[asked] = max(lead, best.get(asked, lead))
        return list(best.values())


def _answers(number: int, example: Example, end_id: int) -> Iterable[_Answer]:
    """Yield the answers of an example: runs of targets that end with a control token."""
    ids, mask = example.ids, example.loss_mask
    begin = None
    for at in range(1, len(ids) + 1):
        target = at < len(ids) and bool(mask[at])
        if target and begin is None:
            begin = at
        elif not target and begin is not None:
            if ids[at - 1] >= end_id:
                yield _Answer(number, begin, at, hash(tuple(ids[:begin])))
            begin = None


def _leads(model: GPT2, batch: Batch) -> Tensor:
    """Return by how much each label's logit leads all others, (B, T); positive where greedy decoding takes it."""
    hidden = model.hidden_states(batch.input_ids, positions=batch.positions, mask=batch.mask)  # (B, T, C)
    labels = batch.labels.flatten()
    leads = torch.zeros(labels.shape, device=labels.device)
    chosen = (labels != IGNORE).nonzero().squeeze(1)
    for places in chosen.split(TOGETHER):
        logits = model.logits(hidden.flatten(0, 1)[places]).float()  # (N, V)
        at = labels[places][:, None]
        own = logits.gather(1, at).squeeze(1)
        leads[places] = own - logits.scatter_(1, at, float("-inf")).amax(1)
    return leads.view(batch.labels.shape)
