"""Teachers whose answers are not finite are found out, by output and by sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import TrainingError
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.data import CorpusSource, Loader
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models import pretrained
from distill_core.objective import Teacher
from distill_core.teacher_check import check_teachers, finite, offenders
from tests.distill_core.teachers import save_teacher

EVERYTHING = FeatureRequest(hidden=frozenset({0, 1, 2}), heads=frozenset({1, 2}), logits=frozenset({"masked", "all"}))


def batch() -> Batch:
    """Three sequences of 4, 3 and 2 tokens with the ids 70, 71, 72, and masked rows 1, 5, 8."""
    made = Batch.of([[1, 2, 3, 4], [5, 6, 7], [8, 9]], rows=torch.tensor([1, 5, 8]))
    made.sequence_ids = np.array([70, 71, 72], np.uint64)
    return made


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_kind_of_output(bad: float, dtype: torch.dtype) -> None:
    def features() -> Features:
        heads = Heads(*(torch.zeros(9, 2, 3, dtype=dtype) for _ in range(3)))
        logits = {"masked": torch.ones(3, 5, dtype=dtype), "all": torch.ones(9, 5, dtype=dtype)}
        pooled, task = torch.ones(3, 6, dtype=dtype), torch.ones(3, 2, dtype=dtype)
        return Features({2: torch.ones(9, 4, dtype=dtype)}, {1: heads}, logits, pooled, task)

    assert finite(features(), batch())
    assert offenders(features(), batch()) == ([], [])
    places = [
        (lambda f: f.hidden[2][5], "hidden state 2", 71),
        (lambda f: f.heads[1].key[8], "key of layer 1", 72),
        (lambda f: f.logits["masked"][1], "vocabulary logits (masked rows)", 71),
        (lambda f: f.logits["all"][0], "vocabulary logits (all rows)", 70),
        (lambda f: f.pooled[2], "pooler's output", 72),
        (lambda f: f.task[0], "task head's output", 70),
    ]
    for place, what, sequence in places:
        broken = features()
        place(broken).view(-1)[1] = bad
        assert not finite(broken, batch())
        assert offenders(broken, batch()) == ([what], [sequence])


def test_large_but_finite_values_pass() -> None:
    """Their sum is too large for fp32: looked at again, and let pass."""
    huge = Features({1: torch.full((9, 4), 3e38)})
    assert not finite(huge, batch())
    check_teachers(batch(), [huge], ["t"], "Stage 's', step 1")


def test_a_damaged_teacher_is_named_with_the_sequences(tiny_corpus: Corpus, tmp_path: Path) -> None:
    """The second of two teachers is damaged; the others stay innocent."""
    for name, broken in (("good", False), ("bad", True)):
        save_teacher(tiny_corpus, tmp_path / name, broken=broken)
    teachers = [Teacher(pretrained.load(str(tmp_path / name), "t").encoder, EVERYTHING) for name in ("good", "bad")]
    loader = Loader(CorpusSource(tiny_corpus.split("train")), 1, 6, 150, 0, 1, "runs")
    batches = loader.step(0).batches
    assert len(batches) > 1
    taught = [[teacher(b) for teacher in teachers] for b in batches]
    assert [[bool(finite(f, b)) for f in answers] for b, answers in zip(batches, taught, strict=True)] == [
        [True, False]
    ] * len(batches)
    check_teachers(batches[0], taught[0][:1], ["good"], "here")
    with pytest.raises(TrainingError) as error:
        check_teachers(batches[0], taught[0], ["good", "bad"], "Stage 's', step 3")
    message = str(error.value)
    assert "Stage 's', step 3: the teacher bad gives values that are not finite (hidden state 2)" in message
    assert batches[0].sequence_ids is not None
    assert ", ".join(map(str, batches[0].sequence_ids)) in message
    assert "not the student diverging" in message
