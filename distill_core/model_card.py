"""README.md of an exported model: where it comes from and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs import hub
from distill_core.config import AugmentStage, DistillStage, made_from, sources, trained
from distill_core.outcome import ModelOutcome, Outcome, StageOutcome, TaskOutcome
from distill_core.tasks.pretrained import ENDINGS

TEMPLATES = Path(__file__).parent / "templates"
PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "tokens": "token-classification",
    "span": "question-answering",
}
EXAMPLES = {
    "zh": "今天天气很{tokenizer.mask_token}。",
    "nl": "Het weer is vandaag {tokenizer.mask_token}.",
    "en": "The weather is {tokenizer.mask_token} today.",
}


def model_card(outcome: Outcome, stage: StageOutcome) -> ModelCard:
    """The card of a finished stage's model. Says nothing that was not measured or configured."""
    assert stage.done is not None
    names = [model.name for model in outcome.models]
    chain = outcome.models[: names.index(stage.name) + 1] if stage.name in names else outcome.models
    model, first = chain[-1] if chain else None, chain[0] if chain else None
    task = next((found for found in outcome.tasks if found.name == stage.name), None)
    environment = Environment(  # noqa: S701  # Markdown, not HTML
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("model_card.md.j2").render(
        name=f"{outcome.config.name}-{stage.name}",
        stage=stage,
        done=stage.done,
        model=model,
        first=first,
        chain=chain,
        task=task,
        auto_class=f"AutoModel{ENDINGS[task.kind]}" if task else None,
        stage_labels=stage.done["labels"],
        before=[s for s in made_by(outcome, stage) if not isinstance(s.stage, AugmentStage)],
        pooler=stage.done["pooler"],
        start=shown(None if isinstance(stage.stage, AugmentStage) else made_from(stage.stage)[1]),
        example=EXAMPLES.get(outcome.config.language, EXAMPLES["en"]),
        objective=describe_objective(stage),
        teacher=teacher_name(stage),
        own_teacher=outcome.config.stage_index(stage.done["teacher"] or "") is not None,
        has_corpus=bool(outcome.config.data.sources),
        unigram=outcome.unigram,
        latency=[row for row in outcome.latency if row["model"] in {m.name for m in chain[:1] + chain[-1:]}],
        vocab_size=(outcome.manifest.get("tokenizer") or {}).get("vocab_size"),
        max_length=outcome.config.longest(trained([stage.stage])[0]),
    )
    data = card_data(outcome, stage, model, first, task)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def card_data(
    outcome: Outcome,
    stage: StageOutcome,
    model: ModelOutcome | None,
    first: ModelOutcome | None,
    task: TaskOutcome | None,
) -> ModelCardData:
    """The metadata block. No licence: it follows from teacher and corpus, which only the user knows."""
    what, dataset = "fill-mask", f"held-out split of the corpus {str(outcome.manifest.get('hash', ''))[:16]}".strip()
    metrics: list[tuple[str, str, float | None]] = []
    if task is not None:
        what, dataset = PIPELINES[task.kind], f"dev rows of {task.task}"
        metrics = [(name, name.replace("_", " "), value) for name, value in task.scores.items()]
    elif model is not None:
        metrics = [("loss", "masked-LM loss (nats)", model.loss), ("accuracy", "masked-LM accuracy", model.accuracy)]
    results = [
        EvalResult(
            task_type=what,
            dataset_type="text",
            dataset_name=dataset,
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title, value in metrics
        if value is not None
    ]
    is_hub = first is not None and not first.is_stage and not Path(first.source).exists()
    tags = ["zhengliu", what] + (["distillation"] if isinstance(stage.stage, DistillStage) else [])
    return ModelCardData(
        language=outcome.config.language,
        library_name="transformers",
        pipeline_tag=what,
        tags=tags,
        base_model=hub.name_of(first.source) if is_hub and first is not None else None,
        model_name=f"{outcome.config.name}-{stage.name}",
        eval_results=results or None,
    )


def teacher_name(stage: StageOutcome) -> str | None:
    """The direct teachers as the run file names them; a local folder by its last part."""
    if not isinstance(stage.stage, DistillStage):
        return None
    return " and ".join(str(shown(teacher.source)) for teacher in stage.stage.teacher)


def made_by(outcome: Outcome, stage: StageOutcome) -> list[StageOutcome]:
    """The stages that had a part in a model, its own last."""
    wanted = {stage.name}
    for earlier in reversed(outcome.stages[: stage.index + 1]):
        if earlier.name in wanted:
            wanted.update(sources(earlier.stage))
    return [earlier for earlier in outcome.stages[: stage.index + 1] if earlier.name in wanted]


def shown(source: str | None) -> str | None:
    """A model as a card names it: a local folder by its last part."""
    return Path(source).name if source is not None and Path(source).is_dir() else source


def describe_objective(stage: StageOutcome) -> list[str]:
    """One line a loss term, with its settings: ``kd_ce, weight 1: temperature 8``."""
    if isinstance(stage.stage, AugmentStage):
        return []
    terms = stage.stage.objective
    known = stage.done["pairs"] if stage.done is not None else [[] for _ in terms]
    matched = zip(terms, known, strict=True)
    return [describe_term(term.model_dump(mode="json"), pairs) for term, pairs in matched]


def describe_term(fields: dict[str, Any], pairs: list[list[int]]) -> str:
    settings = []
    for name, value in fields.items():
        hidden = name in ("kind", "weight") or (name == "layers" and pairs)
        if not hidden and value is not None and value is not False and value != []:
            settings.append(f"{name.replace('_', ' ')} {plain(value)}".rstrip())
    if pairs:
        settings.append("layers (teacher-student) " + ", ".join(f"{t}-{s}" for t, s in pairs))
    head = f"{fields['kind']}, weight {plain(fields['weight'])}"
    return f"{head}: {'; '.join(settings)}" if settings else head


def plain(value: Any) -> str:
    """A setting's value in words; a schedule by its two ends, a switch that is on by nothing."""
    if value is True:
        return ""
    if isinstance(value, dict):
        return f"{value['start']:g} to {value['end']:g}" if "start" in value else str(value)
    if isinstance(value, list):
        return ", ".join("-".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
