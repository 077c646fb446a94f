"""Useful FLOPs against a counter of the matrix products that are really run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_core.batch import Batch, Count
from distill_core.config import DistillStage
from distill_core.features import MASKED_LOGITS, FeatureRequest
from distill_core.flops import Flops, forward_flops, gram_flops, matrix_flops
from distill_core.load import objectives
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Distillation, Teacher

TINY = EncoderConfig(vocab_size=21128, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
STUDENT = EncoderConfig(
    vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)
TEACHER = STUDENT.model_copy(update={"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4})


def test_a_forward_pass_by_hand() -> None:
    # a layer: 2 x (4 x 16 + 2 x 64) for the matrices, 4 x 4 for each query-key pair, ten of them a token
    # the head at a tenth of the tokens: 2 x (16 + 4 x 21128) / 10
    counts: dict[Count, float] = {"tokens": 1, "pairs": 10, "masked": 0.1}
    assert forward_flops(TINY, MASKED_LOGITS).of(counts) == pytest.approx(2 * (384 + 160) + 16905.6)
    first = FeatureRequest(hidden=frozenset({0, 1}))
    assert forward_flops(TINY, first).of(counts) == 384 + 160
    everywhere = FeatureRequest(logits=frozenset({"masked", "all"}))
    assert forward_flops(TINY, everywhere).of(counts) == pytest.approx(2 * (384 + 160) + 169056)


def test_sums_and_multiples() -> None:
    both = Flops({"tokens": 1.0, "pairs": 2.0}) + Flops({"pairs": 3.0}) * 2
    assert both.each == {"tokens": 1.0, "pairs": 8.0}
    assert both.of({"tokens": 10, "masked": 5}) == 10
    assert matrix_flops(2, 3, 2).of({"pairs": 1}) == 2 * 2 * (3 * 2 + 3)
    assert gram_flops(4, 4, 2).of({"tokens": 1}) == 2 * 20 * 16


def batch(length: int = 24) -> Batch:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 300, (3, length), generator=generator).tolist()
    made = Batch.of(ids, rows=torch.arange(0, 3 * length, 5))
    made.labels = made.ids[made.rows]
    return made


def counted(objective: list[dict[str, Any]]) -> tuple[float, float]:
    """Matrix products of a real forward and backward pass, and what is said of them.

    The counter does not see attention itself, which is one kernel; so what is said of it is left out.
    """
    stage = DistillStage.model_validate(
        {
            "kind": "distill",
            "name": "s",
            "teacher": "t",
            "student": {"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}},
            "objective": objective,
            "training": {"steps": 1, "global_batch_size": 1},
        }
    )
    terms = objectives(stage, STUDENT, [(stage.teacher[0], TEACHER)])
    module, made = Distillation(Encoder(STUDENT), terms), batch()
    teacher = Teacher(Encoder(TEACHER), terms[0].needs().teacher)
    counts = {name: torch.tensor(float(value)) for name, value in made.counts().items()}
    with FlopCounterMode(display=False) as counter:
        module(made, [teacher(made)], counts, 0.0).total.backward()
    mine = made.counts()
    unseen = {name: 0.0 if name == "pairs" else value for name, value in mine.items()}
    said = (module.flops()["student"] + teacher.flops()).of(unseen) + module.flops()["losses"].of(mine)
    return counter.get_total_flops(), said


@pytest.mark.parametrize("layers", ["all", "lower"])
def test_what_a_step_really_multiplies(layers: str) -> None:
    """To the deepest layer that is looked at, heads at the masked rows, projections."""
    head = [{"kind": "kd_ce"}] if layers == "all" else []
    found, said = counted([*head, {"kind": "hidden_mse", "layers": [[0, 0], [4, 2] if head else [3, 1]]}])
    assert found == said


def test_layers_that_are_read_at_few_rows_count_whole() -> None:
    """The encoder runs the rest of its last layer at the rows that are read, which is less than what is said."""
    found, said = counted([{"kind": "kd_ce"}])
    assert 0.5 * said < found < said


@pytest.mark.parametrize(
    "term",
    [
        {"kind": "hidden_mse", "layers": "uniform", "projection": "linear", "shared_projection": True},
        {"kind": "attention_scores", "layers": "uniform", "form": "direct"},
        {"kind": "attention_scores", "layers": "uniform", "form": "gram"},
        {"kind": "attention_scores", "layers": "uniform", "form": "gram", "heads": "mean"},
        {"kind": "attention_probs", "layers": "last"},
        {"kind": "minilm"},
        {"kind": "minilmv2", "relation_heads": 4, "key": 0},
        {"kind": "nst", "layers": "last", "form": "gram"},
        {"kind": "fsp", "layers": "last"},
        {"kind": "pkd", "layers": [[2, 1]]},
        {"kind": "emd"},
    ],
    ids=lambda term: f"{term['kind']}-{term.get('form', '')}{term.get('heads', '')}",
)
def test_what_a_loss_really_multiplies(term: dict[str, Any]) -> None:
    whole = [{"kind": "kd_ce"}, {"kind": "hidden_mse", "layers": [[4, 2]]}]  # last layers are read at all rows
    without, with_it = (counted([*whole, *more]) for more in ([], [term]))
    assert with_it[0] - without[0] == with_it[1] - without[1] > 0
