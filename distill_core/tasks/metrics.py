"""How good answers to a task are. Each function takes right answers and predictions and returns shares or correlations.

The libraries of the field compute them (scikit-learn, scipy, seqeval); only the Chinese span scores are ours.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "mcc", "f1"),
    "regression": ("pearson", "spearman"),
    "tokens": ("f1", "precision", "recall", "token_accuracy"),
    "span": ("f1", "exact_match"),
}
"""The metrics of each kind of task; the first is the one that models are chosen by."""


def classification(right: NDArray[np.int64], guessed: NDArray[np.int64], n_labels: int) -> dict[str, float]:
    """Accuracy, macro F1 over the labels that occur, Matthews correlation; ``f1`` of label 1 where there are two."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    average = "binary" if n_labels == 2 else "micro"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one label only on both sides: the correlation is 0, and that says it
        return {
            "accuracy": float((right == guessed).mean()),
            "macro_f1": float(f1_score(right, guessed, average="macro", zero_division=0)),
            "mcc": float(matthews_corrcoef(right, guessed)),
            "f1": float(f1_score(right, guessed, average=average, zero_division=0)),
        }


def regression(right: NDArray[np.floating], guessed: NDArray[np.floating]) -> dict[str, float]:
    """Pearson's and Spearman's correlation; 0 where one side is constant."""
    from scipy.stats import pearsonr, spearmanr

    if len(right) < 2 or np.ptp(right) == 0 or np.ptp(guessed) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {"pearson": float(pearsonr(right, guessed)[0]), "spearman": float(spearmanr(right, guessed)[0])}


def tokens(right: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]) -> dict[str, float]:
    """Entity F1, precision and recall of BIO tags (exact span and type, micro-averaged), and accuracy of tags.

    Of tags that mark no entities (parts of speech) the accuracy alone.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    pairs = [(a, b) for x, y in zip(right, guessed, strict=True) for a, b in zip(x, y, strict=True)]
    accuracy = sum(a == b for a, b in pairs) / max(1, len(pairs))
    if not marks_entities({tag for pair in pairs for tag in pair}):
        return {"token_accuracy": accuracy}
    expected, found = [list(row) for row in right], [list(row) for row in guessed]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no entity predicted at all: the score is 0, and that says it
        return {
            "f1": float(f1_score(expected, found)),
            "precision": float(precision_score(expected, found)),
            "recall": float(recall_score(expected, found)),
            "token_accuracy": accuracy,
        }


def marks_entities(tags: Iterable[str]) -> bool:
    """Whether tags are O, B-, I- (or M-, E-, S-) and a type."""
    return all(tag == "O" or re.match("[BIMES]-.", tag) for tag in tags)


# ---------------------------------------------------------------- spans


def span(right: Sequence[Sequence[str]], guessed: Sequence[str]) -> dict[str, float]:
    """F1 and exact match of answers, the best over each question's right ones, averaged over questions.

    The rule of CMRC 2018 (Cui et al., arXiv 1810.07366): punctuation and case do not count, every Chinese character
    is a unit and every run of other letters is one; F1 comes from the longest common run of units.
    """
    f1 = [max(_f1(units(a), units(guess)) for a in answers) for answers, guess in zip(right, guessed, strict=True)]
    exact = [max(units(a) == units(guess) for a in answers) for answers, guess in zip(right, guessed, strict=True)]
    n = max(1, len(f1))
    return {"f1": sum(f1) / n, "exact_match": sum(exact) / n}


_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def units(text: str) -> list[str]:
    """Chinese characters one by one, other words whole, in lower case and without punctuation and symbols."""
    kept = "".join(" " if unicodedata.category(c)[0] in "PSZ" else c for c in text.lower())
    return re.findall(rf"[{_HAN}]|[^\s{_HAN}]+", kept)


def _f1(right: list[str], guessed: list[str]) -> float:
    common = _longest_common_run(right, guessed)
    if common == 0:
        return float(right == guessed)  # two empty answers agree
    precision, recall = common / len(guessed), common / len(right)
    return 2 * precision * recall / (precision + recall)


def _longest_common_run(a: list[str], b: list[str]) -> int:
    longest, before = 0, [0] * (len(b) + 1)
    for unit in a:
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if unit == other:
                row[j + 1] = before[j] + 1
                longest = max(longest, row[j + 1])
        before = row
    return longest
