"""Held-out masked-LM quality of student and teacher, and how often they agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_core.batch import Batch
from distill_core.cache import AnyTeacher
from distill_core.decoder import Undecoded, Weights
from distill_core.early_stopping import PERPLEXITIES
from distill_core.engine import Rank
from distill_core.evaluate.pseudo_perplexity import PseudoPerplexity
from distill_core.features import MASKED_LOGITS
from distill_core.models.encoder import Encoder

ROWS = 4096
"""Of logits that are there at a time: 0.35 GB in fp32 with 21,128 tokens."""


@dataclass(frozen=True)
class Quality:
    """``loss``: mean of -log softmax(z)[label] over masked tokens, in nats; ``accuracy``: share guessed right."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class HeldOut:
    """``agreement``: share of masked tokens at which student and teacher guess the same."""

    student: Quality
    teacher: Quality | None
    agreement: float | None
    masked_tokens: int
    pseudo_perplexity: PseudoPerplexity | None = None
    """Of the student, where early stopping goes by it."""

    @property
    def score(self) -> float:
        """Higher is better."""
        return -self.student.loss

    def metrics(self) -> dict[str, float]:
        found = {"loss": self.student.loss, "accuracy": self.student.accuracy}
        if self.agreement is not None:
            found["agreement"] = self.agreement
        if self.pseudo_perplexity is not None:
            found["pseudo_perplexity"] = self.pseudo_perplexity.per_sentence
            found["pseudo_perplexity_per_token"] = self.pseudo_perplexity.per_token
        return found

    def scalars(self) -> dict[str, float]:
        found = {"eval/student_loss": self.student.loss, "eval/student_accuracy": self.student.accuracy}
        if self.teacher is not None and self.agreement is not None:
            found |= {"eval/teacher_loss": self.teacher.loss, "eval/teacher_accuracy": self.teacher.accuracy}
            found["eval/agreement"] = self.agreement
        return found | {f"eval/{name}": value for name, value in self.metrics().items() if name in PERPLEXITIES}

    def sentence(self) -> str:
        text = f"held-out loss {self.student.loss:.4f}, accuracy {self.student.accuracy:.1%}"
        if self.teacher is not None:
            text += f" (teacher {self.teacher.loss:.4f}, {self.teacher.accuracy:.1%}; agreement {self.agreement:.1%})"
        found = self.pseudo_perplexity
        if found is not None:
            text += f", pseudo-perplexity {found.per_sentence:.2f} (per token {found.per_token:.2f})"
        return text


@torch.no_grad()
def evaluate(student: Encoder, teacher: AnyTeacher | None, batches: Iterable[Batch], rank: Rank) -> HeldOut:
    """Over all ranks' ``batches`` (every rank has equally many). Collective."""
    was_training = student.training
    student.eval()
    sums = torch.zeros(6, dtype=torch.float64, device=rank.device)
    for batch in batches:
        batch = batch.to(rank.device)
        assert batch.labels is not None
        loss, guesses = judged(student(batch, MASKED_LOGITS).undecoded("masked"), batch.labels)
        sums[0] += batch.n_masked
        sums[1:3] += torch.stack([loss, (guesses == batch.labels).sum().double()])
        if teacher is not None:
            loss, others = judged(teacher(batch, MASKED_LOGITS).undecoded("masked"), batch.labels)
            sums[3:5] += torch.stack([loss, (others == batch.labels).sum().double()])
            sums[5] += (guesses == others).sum()
    student.train(was_training)
    n, loss, right, teacher_loss, teacher_right, agree = rank.sum(sums).tolist()
    n = max(n, 1.0)
    has_teacher = teacher is not None
    return HeldOut(
        student=Quality(loss / n, right / n),
        teacher=Quality(teacher_loss / n, teacher_right / n) if has_teacher else None,
        agreement=agree / n if has_teacher else None,
        masked_tokens=int(n),
    )


def judged(undecoded: Undecoded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss, fp64, and the guess at each row, int64 [M]; of ``ROWS`` rows at a time.

    The decoder is called once, however many rows there are: with ZeRO 3 that is a collective.
    """

    def use(vectors: Tensor, weights: Weights | None) -> tuple[Tensor, Tensor]:
        losses, guesses = [], []
        for some, wanted in zip(torch.split(vectors, ROWS), torch.split(labels, ROWS), strict=True):
            logits = some if weights is None else weights.logits(some)
            losses.append(F.cross_entropy(logits.float(), wanted, reduction="sum").double())
            guesses.append(logits.argmax(-1))
        return torch.stack(losses).sum(), torch.cat(guesses)

    if undecoded.decoder is None:
        return use(undecoded.vectors, None)
    found: tuple[Tensor, Tensor] = undecoded.decoder(undecoded.vectors, use)
    return found
