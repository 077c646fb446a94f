"""``distill plan --measure``: a few real steps, small where whole ones take long, and what they say of whole ones.

Neither data nor weights are needed: the ranks (``probe_rank.py``) make models of the stage's shapes and batches of its
lengths. A step takes as long with them as with trained models on text.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs import loader
from configs.errors import output_error
from distill_core.config import RunConfig
from launcher import agent
from launcher.job import Job
from launcher.plan import Plan, StagePlan


@dataclass(frozen=True)
class Taken:
    """Seconds of one step, the mean over the ranks. ``cpu``: of the processor; ``teacher``: the part of ``wall`` in
    which teachers answer."""

    wall: float
    cpu: float
    teacher: float


@dataclass(frozen=True)
class Probed:
    """Steps of one stage.

    Args:
        ranks: that took them together.
        tokens: of a micro-step on one rank.
        one: steps of one micro-step.
        two: steps of two, each taken after the one at its place in ``one``; () where a whole step is one micro-step.
    """

    ranks: int
    tokens: int
    one: tuple[Taken, ...]
    two: tuple[Taken, ...]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Probed:
        one, two = (tuple(Taken(*step) for step in facts[name]) for name in ("one", "two"))
        return cls(facts["ranks"], facts["tokens"], one, two)

    def seconds(self, stage: StagePlan, tokens: float) -> Taken:
        """Of a step with so many tokens on each rank.

        What comes once in a step (the update, reductions) is in the steps of one micro-step, and the rest is in
        proportion to the tokens: two micro-steps less one are the slope.
        """
        ratio = tokens / self.tokens
        wall, cpu, teacher = (
            self._whole([getattr(step, name) for step in self.one], [getattr(step, name) for step in self.two], ratio)
            for name in ("wall", "cpu", "teacher")
        )
        spared = (1 - stage.teacher_kept) * teacher
        return Taken(max(0.0, wall - spared), max(0.0, cpu * (1 - spared / wall)), teacher - spared)

    @staticmethod
    def _whole(one: Sequence[float], two: Sequence[float], ratio: float) -> float:
        first = statistics.median(one)
        slope = statistics.median(b - a for a, b in zip(one, two, strict=True)) if two else first
        return first + (ratio - 1) * max(0.0, slope)


def probed(config: RunConfig, plan: Plan, stages: Sequence[StagePlan], ranks: int) -> dict[str, Probed]:
    """Steps of ``stages`` on this machine, by so many ranks at once; by name.

    Raises:
        LaunchError: a rank failed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="zhengliu-") as folder:
            # The data folder as it is: it may tell which tokenizer the corpus has. Nothing of the run is written to.
            data = config.data.model_copy(update={"folder": str(config.data_folder.resolve())})
            aside = config.model_copy(update={"output": folder, "data": data})
            aside.folder.mkdir(parents=True)
            (aside.folder / "config.yaml").write_text(loader.to_yaml(aside), encoding="utf-8")
            asked = {"data": asdict(plan.data), "ranks": plan.ranks, "stages": [stage.name for stage in stages]}
            (aside.folder / "probe.json").write_text(json.dumps(asked), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "launcher.probe_rank", str(aside.folder)]
            agent.run(Job(folder=aside.folder, ranks=ranks, command=command))
            found = json.loads((aside.folder / "probed.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise output_error(tempfile.gettempdir(), error) from error
    return {name: Probed.from_json(facts) for name, facts in found.items()}
