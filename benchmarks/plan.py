"""Is the plan right? Peak memory and step time as planned, and as they then are.

``python -m benchmarks.plan TEXT VOCAB``: the quickstart's stages with two ranks, and RoBERTa-wwm-ext ->
MiniRBT-H256 in bf16 at 8 x 128, 8 x 512 and 64 x 128 (in eight micro-steps) packed tokens with one. Memory is planned
without running anything; time by micro-steps of models and batches that are made up (`distill plan --measure`), and
beside it by a matrix product alone. What is measured are real steps of the real loop on the text (as `distill profile`
takes them). All of it by the clock, so the machine should do nothing else; ``tests/launcher/test_plan_measured.py``
compares seconds of the processor, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distill_core.config import RunConfig
from launcher import launch
from launcher.plan import make_plan
from launcher.plan_devices import place_of
from launcher.plan_fit import span
from launcher.plan_time import off, times_of
from launcher.rehearsal import measured
from launcher.runfile import open_run
from launcher.units import size

STEPS = 4
SHAPE = """
name: packed
data:
  sources: [{{path: "{text}"}}]
  tokenizer: {{kind: wordpiece, vocab: "{vocab}"}}
  sequences: {{kind: packed, max_length: 128}}
  masks: {{views: 1}}
stages:
  - name: teacher
    kind: pretrain
    model: {{preset: roberta-wwm-ext}}
    training: &training {{steps: 100, global_batch_size: 8, micro_batch_tokens: 4096, precision: bf16}}
  - name: student
    kind: distill
    teacher: teacher
    student: {{model: {{preset: minirbt-h256}}}}
    objective: [{{kind: kd_ce, temperature: 8}}, {{kind: hidden_mse, layers: uniform}}]
    training: *training
launch: {{processes: 1}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="some megabytes of text, as a run's source")
    parser.add_argument("vocab", type=Path, help="a WordPiece vocabulary of 21,128 entries")
    given = parser.parse_args()
    table = Table("stage", "peak", "planned", "", "a step", "planned", "", "by a product", "")
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "packed.yaml"
        shape.write_text(SHAPE.format(text=given.text.resolve(), vocab=given.vocab.resolve()), encoding="utf-8")
        output = f"output={folder}"
        add(table, open_run("quickstart", [output]), ["teacher", "assistant", "student"])
        for length, batch, micro in ((128, 8, 4096), (512, 8, 4096), (128, 64, 1024)):
            words = [output, f"name=packed-{length}x{batch}", f"data.sequences.max_length={length}"]
            words += [f"stages.student.training.global_batch_size={batch}"]
            words += [f"stages.student.training.micro_batch_tokens={micro}"]
            add(table, open_run(str(shape), words), ["student"])
    Console(width=130).print(table)


def add(table: Table, config: RunConfig, names: list[str]) -> None:
    """Prepare the data of ``config``, plan the stages ``names``, and take their steps."""
    launch.prepare_data(config.data, config.data_folder)
    place = place_of(config.launch.processes, None, None)
    plan = make_plan(config, place.ranks, place.device.gpu)
    plan = replace(plan, stages=[stage for stage in plan.stages if stage.name in names])
    rough, good = (times_of(config, plan, place, not probe, probe, 25e9) for probe in (False, True))
    for stage in plan.stages:
        found = measured(config, stage.name, plan.ranks, STEPS)
        peak, seconds = 1e9 * found["memory"]["peak"], found["step_seconds"]
        row = [size(peak), size(stage.memory.total), off(stage.memory.total, peak), span(seconds)]
        for expected in (good.seconds(stage), rough.seconds(stage)):
            row += ["does not fit", ""] if expected is None else [span(expected), off(expected, seconds)]
        table.add_row(f"{config.name}: {stage.name}", *row)


if __name__ == "__main__":
    main()
