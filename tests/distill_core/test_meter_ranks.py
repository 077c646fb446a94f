"""What console and TensorBoard say of a run's speed, counted again from outside: two gloo ranks, the real loop.

One of the ranks is late in every step, and in a second run the other's data are slow: that both are found where they
belong is the check of the parts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.loader import load
from data_prep.corpus import Corpus
from distill_core.clock import PARTS
from distill_core.config import RunConfig
from distill_core.data import CorpusSource, Loader
from distill_core.models import pretrained
from tests.distill_core.teachers import save_teacher
from tests.ranks import start

PROGRAM = Path(__file__).with_name("meter_program.py")
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]
LATE, SLOW, STEPS = 0.25, 0.3, 6
RUN = """
name: {name}
output: {output}
data:
  folder: {data}
  sources: [{{path: "builtin:sample"}}]
  tokenizer: {{vocab_size: 600}}
  sequences: {{max_length: 48}}
stages:
  - name: student
    kind: distill
    teacher: {{source: {teacher}, head_check: "off"}}
    student: {{model: {{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 48}}}}
    objective: [{{kind: kd_ce}}]
    training:
      {{steps: {steps}, global_batch_size: 24, micro_batch_tokens: 256, log_every: 1, attention: {attention},
        precision: {precision}, evaluate_sequences: 8}}
  - name: never  # or the run would go on to its end
    kind: pretrain
    model: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 48}}
    training: {{steps: 1, global_batch_size: 24}}
"""


@dataclass
class Found:
    """A run's rows (one a step), its log, its config, and what the loaders of both ranks give for each step."""

    rows: list[dict[str, float]]
    log: str
    config: RunConfig
    steps: list[list[Any]]
    curves: EventAccumulator
    watched: list[list[float]]
    """Of the first rank, for each step: seconds in collectives, and of waiting for the loader."""


def carried_out(corpus: Corpus, folder: Path, name: str, late: float, slow: float, **settings: str) -> Found:
    save_teacher(corpus, folder / "teacher")
    run = folder / name
    for part in ("logs", "evaluation"):
        (run / part).mkdir(parents=True)
    given = {"data": corpus.folder, "teacher": folder / "teacher", "steps": STEPS, "output": folder, "name": name}
    (run / "config.yaml").write_text(RUN.format(**given, **settings), encoding="utf-8")
    config = load(run / "config.yaml", [], RunConfig)
    out = folder / "watched.json"
    log = start(PROGRAM, 2, str(run), "--only", "student", str(late), str(slow), str(out))[0]
    stage = config.stage_folder(0)
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = config.stages[0].training  # type: ignore[union-attr]
    source = CorpusSource(corpus.split("train"), config.seed)
    kernel = "padded" if settings["attention"] == "padded" else "runs"
    loaders = [
        Loader(source, config.seed, training.global_batch_size, training.micro_batch_tokens, rank, 2, kernel)  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    curves = EventAccumulator(str(stage / "tensorboard"))
    curves.Reload()
    steps = [[batch for loader in loaders for batch in loader.step(number).batches] for number in range(STEPS)]
    watched = json.loads(out.read_text(encoding="utf-8"))
    return Found([row for row in rows if "loss/total" in row], log, config, steps, curves, watched)


@pytest.fixture(scope="module")
def late(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Rank 1 is late; bf16, in ZeRO 1's own step."""
    folder = tmp_path_factory.mktemp("late")
    return carried_out(tiny_corpus, folder, "late", LATE, 0.0, attention="auto", precision="bf16")


@pytest.fixture(scope="module")
def slow(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Rank 0 waits for its data; fp32 through DeepSpeed's collectives, with attention that pads."""
    folder = tmp_path_factory.mktemp("slow")
    return carried_out(tiny_corpus, folder, "slow", 0.0, SLOW, attention="padded", precision="fp32")


def test_tokens_per_second(late: Found, slow: Found) -> None:
    """Times the seconds of a step: the tokens of the views that both ranks read."""
    for found in (late, slow):
        assert [row["step"] for row in found.rows] == list(range(1, STEPS + 1))
        for row, batches in zip(found.rows, found.steps, strict=True):
            tokens = sum(len(batch.ids) for batch in batches)
            assert row["speed/tokens_per_second"] * row["speed/step_seconds"] == pytest.approx(tokens, rel=1e-6)


def test_a_step_takes_as_long_as_the_clock_says(late: Found) -> None:
    """From one row to the next by the time they were written; evaluations come after the last."""
    for before, row in zip(late.rows, late.rows[1:], strict=False):
        assert row["speed/step_seconds"] == pytest.approx(row["time"] - before["time"], rel=0.2, abs=0.1)


def test_the_parts_are_the_step(late: Found, slow: Found) -> None:
    for row in [*late.rows, *slow.rows]:
        parts = [row[f"time/{part}"] for part in PARTS]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(1.0)
        assert row["data/wait_share"] <= row["time/data"] + 1e-6
        assert row["data/wait_share"] == pytest.approx(row["data/wait_seconds"] / row["speed/step_seconds"])


def test_communication_is_the_time_in_collectives(late: Found, slow: Found) -> None:
    """Our own and DeepSpeed's. Rank 1 is late: the first rank waits for it there, and in no other part."""
    for found in (late, slow):
        said = sum(row["time/communication"] * row["speed/step_seconds"] for row in found.rows)
        assert said == pytest.approx(sum(collectives for collectives, _ in found.watched), rel=0.1, abs=0.1)
    waited = [row["time/communication"] * row["speed/step_seconds"] for row in late.rows[1:]]
    assert np.median(waited) > 0.7 * LATE


def test_waiting_for_data_is_data(late: Found, slow: Found) -> None:
    for found in (late, slow):
        for row, (_, loader) in zip(found.rows, found.watched, strict=True):
            assert row["data/wait_seconds"] == pytest.approx(loader, rel=0.05, abs=0.05)
            assert row["time/data"] * row["speed/step_seconds"] >= row["data/wait_seconds"] - 1e-4
    assert slow.rows[0]["data/wait_seconds"] > SLOW  # the first step's batches are read by nobody before


def test_padding_is_what_attention_computes_for_nothing(late: Found, slow: Found) -> None:
    assert all(row["data/padding_share"] == 0 for row in late.rows)
    for row, batches in zip(slow.rows, slow.steps, strict=True):
        lengths = [batch.layout.lengths for batch in batches]
        share = 1 - sum(map(sum, lengths)) / sum(len(each) * max(each) for each in lengths)
        assert row["data/padding_share"] == pytest.approx(share, abs=1e-9)
    assert max(row["data/padding_share"] for row in slow.rows) > 0


def test_utilization_is_useful_flops_over_the_peak(late: Found) -> None:
    """Encoders at all tokens, heads at the masked ones; a backward pass is twice a forward pass."""
    (peak,) = json.loads((late.config.folder / "peak.json").read_text(encoding="utf-8")).values()
    teacher = pretrained.read_config(str(late.config.folder.parent / "teacher"), "test")
    student = late.config.stages[0].student.model.resolve(teacher.vocab_size)  # type: ignore[union-attr]
    for row, batches in zip(late.rows, late.steps, strict=True):
        flops = 0.0
        for shape, passes in ((student, 3), (teacher, 1)):
            width, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
            tokens = sum(len(batch.ids) for batch in batches)
            pairs = sum(length**2 for batch in batches for length in batch.layout.lengths)
            masked = sum(len(batch.labels) for batch in batches)
            layer = tokens * (8 * width**2 + 4 * width * inner) + 4 * width * pairs
            flops += passes * (layers * layer + masked * 2 * width * (width + shape.vocab_size))
        assert row["speed/useful_tflops"] * 1e12 * row["speed/step_seconds"] == pytest.approx(flops, rel=1e-6)
        assert row["speed/flops_utilization"] == pytest.approx(row["speed/useful_tflops"] * 1e12 / peak, rel=1e-6)


def test_console_and_tensorboard_say_the_same(late: Found) -> None:
    last = late.rows[-1]
    for name in ("speed/tokens_per_second", "speed/flops_utilization", "time/communication", "data/padding_share"):
        event = late.curves.Scalars(name)[-1]
        assert (event.step, event.value) == (STEPS, pytest.approx(last[name], rel=1e-6))
    line = next(line for line in late.log.splitlines() if f"step {STEPS}/{STEPS}" in line)
    assert f"{last['speed/tokens_per_second']:,.0f} tokens/s" in line
    assert f"communication {last['time/communication']:.0%}" in line
    assert re.search(r"\d+% of the peak \(\S+ useful TFLOP/s\)  0% padding  \d+% data wait", line)
