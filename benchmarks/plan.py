"""Is the plan right? Peak memory and step time as planned, and as they then are.

``python -m benchmarks.plan TEXT VOCAB``: the quickstart's stages with two ranks, and RoBERTa-wwm-ext -> MiniRBT-H256 in
bf16 at 8 x 128 and 8 x 512 packed tokens with one. Memory is planned without running anything; the time of a step is
that of some steps before (`distill plan --measure`), so the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.loader import to_yaml
from distill_core.config import RunConfig
from launcher import launch
from launcher.plan import make_plan
from launcher.plan_time import off
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
    table = Table("stage", "peak", "planned", "off by", "a step", "measured before", "off by")
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "packed.yaml"
        shape.write_text(SHAPE.format(text=given.text.resolve(), vocab=given.vocab.resolve()), encoding="utf-8")
        output = f"output={folder}"
        add(table, open_run("quickstart", [output]), ["teacher", "assistant", "student"])
        for length in (128, 512):
            words = [output, f"name=packed-{length}", f"data.sequences.max_length={length}"]
            add(table, open_run(str(shape), words), ["student"])
    Console(width=120).print(table)


def add(table: Table, config: RunConfig, stages: list[str]) -> None:
    """Prepare the data of ``config``, plan ``stages``, and take their steps twice."""
    launch.prepare_data(config.data, config.data_folder)
    launch.write(config.folder / "config.yaml", to_yaml(config))
    ranks = config.launch.processes or 1
    plan = {stage.name: stage for stage in make_plan(config, ranks).stages}
    for name in stages:
        before, found = (facts(measured(config, name, ranks, STEPS)) for _ in range(2))
        planned, (peak, seconds) = plan[name].memory.total, found
        row = [size(peak), size(planned), off(planned, peak)]
        row += [f"{1000 * seconds:.4g} ms", f"{1000 * before[1]:.4g} ms", off(before[1], seconds)]
        table.add_row(f"{config.name}: {name}", *row)


def facts(found: dict[str, Any]) -> tuple[float, float]:
    """Peak memory in bytes, and seconds of a step."""
    return 1e9 * found["memory"]["peak"], found["step_seconds"]


if __name__ == "__main__":
    main()
