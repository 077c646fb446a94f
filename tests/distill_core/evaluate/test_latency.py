from __future__ import annotations

import pytest
import torch

from distill_core.evaluate import latency
from distill_core.evaluate.config import EvaluationConfig
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder


def encoder(layers: int = 1, hidden: int = 8, positions: int = 32) -> Encoder:
    return Encoder(
        EncoderConfig(
            vocab_size=20,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=positions,
        )
    )


def test_measure_gives_a_row_for_each_shape() -> None:
    model = encoder().train()
    rows = latency.measure(model, [1, 3], [4, 8], repeats=3)
    assert [(row["batch_size"], row["length"]) for row in rows] == [(1, 4), (1, 8), (3, 4), (3, 8)]
    assert not model.training
    for row in rows:
        assert 0 < row["milliseconds_min"] <= row["milliseconds_median"]
        expected = 1000 * row["batch_size"] * row["length"] / row["milliseconds_median"]
        assert row["tokens_per_second"] == pytest.approx(expected, rel=0.01)
        assert "model" not in row and "speedup" not in row


def test_compare_takes_turns_and_relates_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"teacher": encoder(layers=3), "student": encoder()}
    order: list[int] = []
    seconds = {id(models["teacher"]): 0.008, id(models["student"]): 0.002}

    def fake(work: latency.Work, model: Encoder) -> float:
        order.append(id(model))
        return seconds[id(model)]

    monkeypatch.setattr(latency.Work, "seconds", fake)
    config = EvaluationConfig(latency_lengths=[8], latency_batch_sizes=[2], latency_repeats=3)
    rows = latency.compare(models, config, max_length=32)
    assert order == [id(model) for model in models.values()] * (latency.WARM_UPS + 3)
    assert [(row["model"], row["speedup"], row["milliseconds_median"]) for row in rows] == [
        ("teacher", 1.0, 8.0),
        ("student", 4.0, 2.0),
    ]


def test_lengths_are_cut_to_what_data_and_models_have() -> None:
    models = {"a": encoder(positions=16), "b": encoder(positions=12)}
    config = EvaluationConfig(latency_lengths=[4, 100, 200], latency_batch_sizes=[1, 1], latency_repeats=1)
    assert {row["length"] for row in latency.compare(models, config, max_length=14)} == {4, 12}
    assert len(latency.compare(models, config, max_length=4)) == 2


def test_runs_in_fp32_without_gradients() -> None:
    model = encoder().to(torch.bfloat16)
    latency.measure(model, [1], [4], repeats=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_work_is_the_whole_forward_with_one_row_a_sequence() -> None:
    work = latency.Work(3, 5, 20, torch.device("cpu"))
    assert work.batch.ids.shape == (15,) and work.batch.rows.tolist() == [2, 7, 12]
    assert work.batch.positions.tolist() == [0, 1, 2, 3, 4] * 3
    assert work.batch.layout.runs == ((0, 3, 5),)
