"""Zero-shot choice: which of some words fits into the gap, as in the DIE/DAT task for Dutch.

No training: the probabilities with which the masked-LM head fills the gap are compared (as RobBERT's authors do for
"die" and "dat"; a word of several tokens is scored by its pseudo-log-likelihood).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from configs.errors import DataError
from configs.loader import Config
from distill_core.evaluate.fill_mask import MASK
from distill_core.evaluate.scoring import Located, Span, locate, word_scores
from distill_core.models.encoder import Encoder


class Choice(Config):
    """One line of the file."""

    sentence: str
    """With one [MASK], the gap."""
    choices: list[str] = Field(min_length=2)
    answer: str

    @model_validator(mode="after")
    def _consistent(self) -> Choice:
        if self.sentence.count(MASK) != 1:
            raise ValueError(f"`sentence` must hold exactly one {MASK}")
        if len(set(self.choices)) < len(self.choices) or not all(word.strip() for word in self.choices):
            raise ValueError("`choices` must differ, and none may be empty")
        if self.answer not in self.choices:
            raise ValueError(f"`answer` {self.answer!r} is not one of the choices")
        return self


@dataclass(frozen=True)
class ChoiceQuality:
    """``accuracy``: share of the scored items at which the answer is likelier than every other choice (None without
    items); ``unscored``: items left out, by reason."""

    accuracy: float | None
    items: int
    unscored: dict[str, int]


def read_choices(path: str | Path) -> list[Choice]:
    """The items of a JSON lines file: ``{"sentence": "... [MASK] ...", "choices": ["die", "dat"], "answer": "die"}``.

    Raises:
        DataError: the file cannot be read or is empty, or a line is not such an item (with its number).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"Cannot read {path} of `evaluation.choices`: {reason}. Correct the path.") from None
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            items.append(Choice.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg']}" if where else str(first["msg"]).removeprefix("Value error, ")
            raise DataError(f"{path}:{number} is not a choice item: {reason}. Correct the line.") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not JSON ({error}). Correct the line.") from None
    if not items:
        raise DataError(f"{path} of `evaluation.choices` holds no items.")
    return items


def choose(model: Encoder, tokenizer: Any, items: list[Choice]) -> ChoiceQuality:
    """Accuracy of ``model`` (on its device) with its own ``tokenizer`` on ``items``.

    Left out and counted are items with a word that the vocabulary does not know (``unknown``), that has no tokens of
    its own in the sentence (``merged``), or that stand in a sentence longer than the model takes (``too_long``).
    """
    sentences, marks, owner = [], [], []
    for number, item in enumerate(items):
        before, _, after = item.sentence.partition(MASK)
        for word in item.choices:
            sentences.append(before + word + after)
            marks.append([(len(before), len(before) + len(word))])
            owner.append(number)
    texts = locate(tokenizer, sentences, marks)
    trouble: dict[int, str] = {}
    for number, text in zip(owner, texts, strict=True):
        reason = problem(text, tokenizer.unk_token_id, model.config.max_length)
        if reason:
            trouble.setdefault(number, reason)
    words: list[tuple[int, Span, Span]] = [
        (place, text.spans[0] or (0, 0), (0, 0)) for place, text in enumerate(texts) if owner[place] not in trouble
    ]
    scores = word_scores(model, texts, words, tokenizer.mask_token_id)
    by_item: dict[int, list[float]] = {}
    for (place, _, _), score in zip(words, scores.tolist(), strict=True):
        by_item.setdefault(owner[place], []).append(score)
    right = sum(_is_answer(items[number], found) for number, found in by_item.items())
    accuracy = right / len(by_item) if by_item else None
    reasons = list(trouble.values())
    return ChoiceQuality(accuracy, len(by_item), {reason: reasons.count(reason) for reason in sorted(set(reasons))})


def problem(text: Located, unknown_id: int | None, longest: int) -> str | None:
    """Why the marked words of a sentence cannot be scored; None when they can."""
    if len(text.ids) > longest:
        return "too_long"
    if any(unknown_id in text.pieces(word) for word in range(len(text.spans))):
        return "unknown"
    return "merged" if None in text.spans else None


def _is_answer(item: Choice, scores: list[float]) -> bool:
    """A tie is not right."""
    best = int(np.argmax(scores))
    return item.choices[best] == item.answer and scores.count(scores[best]) == 1
