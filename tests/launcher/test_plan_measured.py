"""What `distill plan` says of memory and time, and what real steps then take: the quickstart, and two benchmark shapes.

Time is compared in seconds of the processor, in turns within the same processes, so that a busy machine disturbs both
sides alike; seconds by the clock are printed beside them.
"""

from __future__ import annotations

import io
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from configs.errors import ConfigError
from distill_core.config import RunConfig
from launcher import launch, plan_view
from launcher.plan import Plan, StagePlan, make_plan
from launcher.plan_probe import Probed, Taken
from launcher.plan_time import off
from launcher.plan_view import Wanted
from launcher.rehearsal import rehearsed
from launcher.runfile import open_run
from launcher.units import size
from tests import ranks

PROGRAM = Path(__file__).with_name("plan_program.py")
ALLOWED = 0.15
PACKED = """
name: packed
output: {folder}
data:
  sources: [{{path: "builtin:sample"}}]
  tokenizer: {{kind: wordpiece, vocab: {folder}/vocab.txt}}
  sequences: {{kind: packed, max_length: {length}}}
  masks: {{views: 1}}
stages:
  - name: teacher
    kind: pretrain
    model: {{preset: roberta-wwm-ext}}
    training: &training {{steps: 100, global_batch_size: {batch}, micro_batch_tokens: {micro}, precision: bf16}}
  - name: student
    kind: distill
    teacher: teacher
    student: {{model: {{preset: minirbt-h256}}}}
    objective: [{{kind: kd_ce, temperature: 8}}, {{kind: hidden_mse, layers: uniform}}]
    training: *training
launch: {{processes: 1}}
"""


def packed(folder: Path, length: int, batch: int, micro: int) -> RunConfig:
    """RoBERTa-wwm-ext (12 x 768) with random weights -> MiniRBT-H256, both with 21,128 tokens."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(0x4E00, 0xA000))]
    entries += [f"[unused{n}]" for n in range(21128 - len(entries))]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    path = folder / "packed.yaml"
    path.write_text(PACKED.format(folder=folder, length=length, batch=batch, micro=micro), encoding="utf-8")
    return open_run(str(path))


def compared(config: RunConfig, names: list[str], folder: Path, rounds: int) -> list[tuple[StagePlan, dict[str, Any]]]:
    """Each stage as planned, and what its ranks found."""
    launch.prepare_data(config.data, config.data_folder)
    world_size = config.launch.processes or 1
    stages = {stage.name: stage for stage in make_plan(config, world_size, gpu=False).stages}
    found = []
    for name in names:
        with rehearsed(config, name) as aside:
            words = (str(aside.folder), name, str(folder / "found.json"), str(rounds))
            ranks.start(PROGRAM, world_size, *words, timeout=900)
        found.append((stages[name], json.loads((folder / "found.json").read_text(encoding="utf-8"))))
    return found


def planned(stage: StagePlan, facts: dict[str, Any]) -> Taken:
    return Probed.from_json(facts["probed"]).seconds(stage, stage.tokens_per_step / stage.ranks)


def met(facts: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a real step by the clock and of the processor."""
    wall, cpu = (statistics.median(step[n] for step in facts["real"]) for n in (0, 1))
    return wall, cpu


def table(name: str, found: list[tuple[StagePlan, dict[str, Any]]]) -> str:
    columns = ("stage", "peak", "planned", "", "CPU s/step", "planned", "", "wall s/step", "planned", "")
    shown = Table(*columns, title=f"{name}: planned and measured")
    for stage, facts in found:
        taken, (wall, cpu) = planned(stage, facts), met(facts)
        row = [size(facts["peak"]), size(stage.memory.total), off(stage.memory.total, facts["peak"])]
        for mine, theirs in ((taken.cpu, cpu), (taken.wall, wall)):
            row += [f"{theirs:.3f}", f"{mine:.3f}", off(mine, theirs)]
        shown.add_row(stage.name, *row)
    out = io.StringIO()
    Console(file=out, width=120).print(shown)
    return out.getvalue()


@pytest.mark.ranks
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["quickstart", "packed-128", "packed-512"])
def test_a_plan_is_within_15_percent_of_what_is_measured(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``benchmarks/plan.py`` compares the same shapes through the command's own ways, on a quiet machine."""
    if name == "quickstart":
        config = open_run("quickstart", [f"output={tmp_path}"])
        found = compared(config, ["teacher", "assistant", "student"], tmp_path, rounds=7)
    else:  # the first in two micro-steps
        sizes = {"packed-128": (128, 8, 512), "packed-512": (512, 2, 1024)}[name]
        found = compared(packed(tmp_path, *sizes), ["student"], tmp_path, rounds=4)
    with capsys.disabled():
        print(f"\n{table(name, found)}")
    for stage, facts in found:
        assert stage.memory.total == pytest.approx(facts["peak"], rel=ALLOWED), (stage.name, stage.memory)
        assert planned(stage, facts).cpu == pytest.approx(met(facts)[1], rel=ALLOWED), stage.name


# ---------------------------------------------------------------- the command


@pytest.mark.ranks
def test_micro_steps_are_measured_and_shown(run_file: Path) -> None:
    """Without prepared data and trained models, and with a step cut into several micro-steps."""
    words = ["stages.teacher.training.global_batch_size=64", "name=measured"]
    config = open_run(str(run_file), words)
    out = io.StringIO()
    plan_view.show(config, Wanted(measure=True, counts=(2, 64)), Console(file=out, width=160))
    assert not config.folder.exists(), "nothing is written for a plan"
    text = " ".join(out.getvalue().split())
    assert "from real micro-steps of 2 ranks on this machine" in text
    assert "on paper: from real micro-steps" in text


def test_only_this_machine_can_be_measured(run_file: Path) -> None:
    with pytest.raises(ConfigError, match="--measure takes steps here"):
        plan_view.show(open_run(str(run_file)), Wanted(measure=True, device="h100"))


# ---------------------------------------------------------------- arithmetic


def steps(*walls: float) -> tuple[Taken, ...]:
    return tuple(Taken(wall, 2 * wall, wall / 2) for wall in walls)


def stage_of(prepared: Path) -> StagePlan:
    plan: Plan = make_plan(open_run(str(prepared)), 1)
    return plan.stages[1]


def test_a_step_from_steps_of_one_and_two_micro_steps(prepared: Path) -> None:
    stage = stage_of(prepared)
    found = Probed(1, 100, steps(3.0, 4.0, 5.0), steps(5.0, 6.0, 9.0))
    assert found.seconds(stage, 100) == Taken(4.0, 8.0, 2.0)
    assert found.seconds(stage, 1000) == Taken(4.0 + 9 * 2.0, 8.0 + 9 * 4.0, 2.0 + 9 * 1.0)
    assert Probed(1, 100, steps(3.0, 4.0, 5.0), ()).seconds(stage, 103).wall == pytest.approx(4.12)


def test_teachers_that_do_not_answer_take_no_time(prepared: Path) -> None:
    """Beside another stage, or out of a cache."""
    found = Probed(1, 100, steps(4.0), ())
    assert found.seconds(replace(stage_of(prepared), teacher_kept=0.0), 100) == Taken(2.0, 4.0, 0.0)
    assert found.seconds(replace(stage_of(prepared), teacher_kept=0.5), 100) == Taken(3.0, 6.0, 1.0)
