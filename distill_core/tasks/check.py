"""What can be known to fail of a stage with a task before any long work starts."""

from __future__ import annotations

from collections.abc import Sequence

from configs.errors import ConfigError
from distill_core.config import AnyStage, AugmentStage, DistillStage, FinetuneStage, PretrainStage, RunConfig
from distill_core.objective import Objective
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.augment import check_augment
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.load import check_task_files, read_labels


def task_of(config: RunConfig, stage: AnyStage) -> TaskConfig | None:
    name = None if isinstance(stage, PretrainStage) else stage.task
    return None if name is None else config.tasks[name]


def check_task(config: RunConfig, stage: AnyStage, who: str) -> None:
    """The rows of a stage's task can be read, and its teachers' heads are of this task.

    Raises:
        DataError: a file is missing or unusable, its labels are not the task's, or a given teacher knows others.
        ConfigError: a teacher is fine-tuned for another task, or rows of this kind are not augmented.
    """
    task = task_of(config, stage)
    if task is None:
        return
    check_task_files(task, who)
    if isinstance(stage, AugmentStage):
        check_augment(stage.augment, task.kind, who)
    if not isinstance(stage, DistillStage):
        return
    if stage.student.init.head:
        raise ConfigError(
            f"{who}: student.init.head: true copies a masked-LM head, but with a `task` the student has the task's; "
            "remove it."
        )
    labels = read_labels(task)
    for teacher in stage.teacher:
        index = config.stage_index(teacher.source)
        if index is None:
            if task_models.task_kind_of(teacher.source) is not None:
                task_models.check_head(teacher.source, task.kind, labels, f"{who}: teacher")
            continue
        theirs = task_of(config, config.stages[index])
        if theirs is not None and (theirs.kind, read_labels(theirs)) != (task.kind, labels):
            raise ConfigError(
                f"{who}: the teacher {teacher.source!r} is trained for another task (kind {theirs.kind}"
                f"{', labels ' + ', '.join(read_labels(theirs)) if read_labels(theirs) else ''}) than this stage's "
                f"(kind {task.kind}{', labels ' + ', '.join(labels) if labels else ''})."
            )


def check_losses(config: RunConfig, stage: AnyStage, objectives: Sequence[Objective], who: str) -> None:
    """Losses on a task's outputs are where a task is, and others read no more than its rows.

    Raises:
        ConfigError: a loss has nothing to look at, or `select: best` nothing to choose by.
    """
    assert not isinstance(stage, AugmentStage)
    needs = [objective.needs() for objective in objectives]
    on_task = any(need.student.task for need in needs)
    if task_of(config, stage) is None:
        if on_task:
            raise ConfigError(
                f"{who}: the objective has a task's loss, but the stage has no `task`. "
                f"{'A stage of kind finetune has one.' if isinstance(stage, PretrainStage) else 'Name one.'}"
            )
        return
    if any(need.student.logits or need.student.pooled for need in needs):
        raise ConfigError(
            f"{who}: a loss reads the vocabulary logits or the pooler of a masked LM, but a stage with a `task` has "
            "neither masked tokens nor sentence pairs. Use task, task_kd, and losses on hidden states, attention or "
            "relations."
        )
    if stage.training.select == "best" and not on_task:
        raise ConfigError(
            f"{who}: select: best chooses by the scores of the task's head, but no loss of this stage trains it; "
            "remove `select`, or add task or task_kd."
        )
    for teacher, need in zip(stage.teacher if isinstance(stage, DistillStage) else [], needs, strict=False):
        if need.teacher.task and not has_head(config, teacher.source):
            raise ConfigError(
                f"{who}: the objective asks for the answers of the teacher {teacher.source} to the task, but it has no "
                "head for one. Fine-tune it first with a stage of kind finetune, and name that stage as the teacher."
            )


def has_head(config: RunConfig, source: str) -> bool:
    """Whether a model has a trained head for some task."""
    index = config.stage_index(source)
    if index is None:
        return task_models.task_kind_of(source) is not None
    stage = config.stages[index]
    return isinstance(stage, FinetuneStage) or (isinstance(stage, DistillStage) and stage.task is not None)
