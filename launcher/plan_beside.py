"""What training stages side by side saves, and what it takes."""

from __future__ import annotations

from distill_core.beside import groups
from distill_core.config import RunConfig
from launcher.plan import Plan, StagePlan
from launcher.units import amount, size


def beside_lines(config: RunConfig, plan: Plan) -> list[str]:
    """For each group of stages side by side: FLOPs saved, and memory while they are trained together."""
    by_name = {stage.name: stage for stage in plan.stages}
    found = []
    for group in groups(config.stages):
        if len(group) > 1:
            stages = [by_name[config.stages[index].name] for index in group]
            saved = saved_flops(stages)
            alone = saved + sum(stage.flops for stage in stages)
            names = " and ".join(stage.name for stage in stages)
            found.append(
                f"side by side: {names} share each teacher forward, which saves {amount(saved)}FLOP "
                f"({saved / alone:.0%} of what they take one after the other); memory together "
                f"{size(memory_together(stages))} on one rank"
            )
    return found


def saved_flops(stages: list[StagePlan]) -> float:
    """The teachers' forward passes that the stages after the first do not repeat."""
    return sum(stage.teacher_flops_per_token * stage.tokens for stage in stages[1:])


def memory_together(stages: list[StagePlan]) -> float:
    """Bytes on one rank: each student's own state, the teachers once, and one student's activations at a time."""
    memories = [stage.memory for stage in stages]
    own = sum(memory.weights + memory.gradients + memory.optimizer for memory in memories)
    passing = max(memory.activations + memory.logits + memory.workspace for memory in memories)
    first = memories[0]
    return first.process + max(first.loading, own + first.teacher + passing)
