"""README.md of an exported model: where it comes from and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distill_core.config import DistillStage
from distill_core.outcome import ModelOutcome, Outcome, StageOutcome

TEMPLATES = Path(__file__).parent / "templates"


def model_card(outcome: Outcome, stage: StageOutcome) -> ModelCard:
    """The card of a finished stage's model. Says nothing that was not measured or configured."""
    assert stage.done is not None
    names = [model.name for model in outcome.models]
    chain = outcome.models[: names.index(stage.name) + 1]
    model, first = chain[-1], chain[0]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("model_card.md.j2").render(
        name=f"{outcome.config.name}-{stage.name}",
        stage=stage,
        done=stage.done,
        model=model,
        first=first,
        chain=chain,
        stages={s.name: s for s in outcome.stages},
        objective=describe_objective(stage),
        teacher=teacher_name(stage),
        unigram=outcome.unigram,
        latency=[row for row in outcome.latency if row["model"] in (first.name, model.name)],
        vocab_size=(outcome.manifest.get("tokenizer") or {}).get("vocab_size"),
        max_length=outcome.config.data.sequences.max_length,
    )
    data = card_data(outcome, stage, model, first)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def card_data(outcome: Outcome, stage: StageOutcome, model: ModelOutcome, first: ModelOutcome) -> ModelCardData:
    """The metadata block. No licence: it follows from teacher and corpus, which only the user knows."""
    metrics = [("loss", "masked-LM loss (nats)", model.loss), ("accuracy", "masked-LM accuracy", model.accuracy)]
    results = [
        EvalResult(
            task_type="fill-mask",
            dataset_type="text",
            dataset_name=f"held-out split of the corpus {str(outcome.manifest.get('hash', ''))[:16]}".strip(),
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title, value in metrics
        if value is not None
    ]
    is_hub = not first.is_stage and not Path(first.source).exists()
    tags = ["zhengliu", "bert", "fill-mask"] + (["distillation"] if isinstance(stage.stage, DistillStage) else [])
    return ModelCardData(
        language="zh",
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=tags,
        base_model=first.source if is_hub else None,
        model_name=f"{outcome.config.name}-{stage.name}",
        eval_results=results or None,
    )


def teacher_name(stage: StageOutcome) -> str | None:
    """The direct teacher as the run file names it; a local folder by its last part."""
    if not isinstance(stage.stage, DistillStage):
        return None
    source = stage.stage.teacher.source
    return Path(source).name if Path(source).is_dir() else source


def describe_objective(stage: StageOutcome) -> list[str]:
    """One line a loss term, with its settings: ``kd_ce, weight 1: temperature 8``."""
    if not isinstance(stage.stage, DistillStage):
        return ["mlm, weight 1"]
    terms = stage.stage.objective
    known = stage.done["pairs"] if stage.done is not None else [[] for _ in terms]
    matched = zip(terms, known, strict=True)
    return [describe_term(term.model_dump(mode="json"), pairs) for term, pairs in matched]


def describe_term(fields: dict[str, Any], pairs: list[list[int]]) -> str:
    settings = []
    for name, value in fields.items():
        words = name.replace("_", " ")
        if (
            name in ("kind", "weight")
            or (name == "layers" and pairs)
            or value in (False, None)
            or isinstance(value, list | dict)
        ):
            continue
        settings.append(
            words if value is True else f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"
        )
    if pairs:
        settings.append("layers (teacher-student) " + ", ".join(f"{t}-{s}" for t, s in pairs))
    weight = fields["weight"]
    scheduled = isinstance(weight, dict)
    shown = f"{weight['start']:g} to {weight['end']:g}" if scheduled else f"{weight:g}"
    head = f"{fields['kind']}, weight {shown}"
    return f"{head}: {'; '.join(settings)}" if settings else head
