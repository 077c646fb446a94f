"""The tables and sentences of the report: an outcome -> plain text cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.page import Table
from distill_core.config import AugmentStage, DistillStage, FinetuneStage, TrainedStage, made_from
from distill_core.model_card import describe_objective, teacher_name
from distill_core.models.config import EncoderConfig
from distill_core.outcome import Outcome, StageOutcome

LATENCY_NOTE = (
    "Forward pass of encoder and masked-LM head (at one row a sequence) in fp32 on synthetic ids; the models take "
    "turns, repeat by repeat. Speed-up: the first model's median over this one's."
)
COURSE_POINTS = 6


def show(value: Any, form: str = "{}") -> str:
    return "–" if value is None else form.format(value)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# ---------------------------------------------------------------- the whole


def headline(outcome: Outcome) -> list[tuple[str, str]]:
    """(figure, what it is) pairs for the top of the page."""
    out: list[tuple[str, str]] = []
    if outcome.tasks:
        found = outcome.tasks[-1]
        score = next(iter(found.scores.items()))
        out.append((f"{score[1]:.4f}", f"{score[0].replace('_', ' ')} of {found.name} on {found.task}"))
    if not outcome.models:
        return out
    first, last = outcome.models[0], outcome.models[-1]
    if last.parameters:
        out.append((f"{last.parameters / 1e6:.2f} M", f"parameters of {last.name}"))
        if first.parameters and first is not last:
            out.append((f"{first.parameters / last.parameters:.1f}×", f"smaller than {first.name}"))
    if last.accuracy is not None:
        of = f" (of {first.name}'s {first.accuracy:.1%})" if first.accuracy and first is not last else ""
        out.append((f"{last.accuracy:.1%}", f"held-out accuracy{of}"))
    gain = closed(outcome, last.loss)
    if gain is not None and first is not last:
        out.append((f"{gain:.0%}", "of the teacher's gain over unigrams"))
    speed = latency_at(outcome).get(last.name)
    if speed is not None and first is not last:
        out.append((f"{speed['speedup']:.1f}×", f"as fast at {speed['batch_size']}×{speed['length']} tokens"))
    return out


def closed(outcome: Outcome, loss: float | None) -> float | None:
    """How much of the way from the unigram baseline's loss to the first model's a model has gone."""
    best = outcome.models[0].loss if outcome.models else None
    if loss is None or best is None or outcome.unigram is None or outcome.unigram["loss"] <= best:
        return None
    return float((outcome.unigram["loss"] - loss) / (outcome.unigram["loss"] - best))


def missing(outcome: Outcome) -> list[str]:
    """Sentences on what the run has not left yet."""
    lines = [f"Stage {s.name} is not finished ({s.state})." for s in outcome.stages if s.done is None]
    if not outcome.manifest:
        lines.append("The prepared data is not in its place.")
    if outcome.unigram is None and outcome.config.data.sources:
        lines.append("The unigram baseline is not measured yet.")
    if not outcome.latency:
        lines.append("Latency is not measured yet.")
    if outcome.config.evaluation.sentences and not outcome.guesses:
        lines.append("The fill-mask guesses are not made yet.")
    if not outcome.environment:
        lines.append("There is no environment.json, so versions and hardware are not known.")
    return lines


# ---------------------------------------------------------------- models


def models_table(outcome: Outcome) -> Table:
    first = outcome.models[0] if outcome.models else None
    columns = ["model", "parameters", "ratio", "on disk", "loss", "accuracy", "teacher's gain", "agreement", "speed-up"]
    rows = []
    if outcome.unigram is not None:
        quality = [f"{outcome.unigram['loss']:.4f}", f"{outcome.unigram['accuracy']:.2%}"]
        rows.append(["unigram baseline", "–", "–", "–", *quality, "0%", "–", "–"])
    speeds = latency_at(outcome)
    for model in outcome.models:
        ratio = (
            model.parameters / first.parameters if first is not None and model.parameters and first.parameters else None
        )
        size = model.bytes_on_disk / 1e6 if model.bytes_on_disk else None
        rows.append(
            [
                model.name,
                show(model.parameters, "{:,}"),
                show(ratio, "{:.1%}"),
                show(size, "{:.1f} MB"),
                show(model.loss, "{:.4f}"),
                show(model.accuracy, "{:.2%}"),
                show(closed(outcome, model.loss), "{:.0%}"),
                show(model.agreement, "{:.1%}"),
                show(speeds.get(model.name, {}).get("speedup"), "{:.2f}×"),
            ]
        )
    return Table("", columns, rows)


def models_notes(outcome: Outcome) -> list[str]:
    if not outcome.config.data.sources:
        return ["The run has no corpus, so how well models predict masked tokens is not measured."]
    counts = {m.masked_tokens for m in outcome.models if m.masked_tokens}
    tokens = " and ".join(f"{n:,}" for n in sorted(counts))
    notes = [
        "Loss (nats) and accuracy of masked-language modelling on held-out documents"
        + (f" ({tokens} masked tokens)" if tokens else "")
        + ". Teacher's gain: the share of the way from the unigram baseline's loss to the first model's. "
        "Agreement: how often a model guesses what its own teacher guesses."
    ]
    speeds = latency_at(outcome)
    if speeds:
        row = next(iter(speeds.values()))
        notes.append(f"Speed-up at {row['batch_size']} sequences of {row['length']} tokens.")
    return notes


# ---------------------------------------------------------------- the chain


def chain_notes(outcome: Outcome) -> list[str]:
    return [" → ".join(model.name for model in outcome.models)]


def chain_tables(outcome: Outcome) -> Iterator[Table]:
    vocab = (outcome.manifest.get("tokenizer") or {}).get("vocab_size")
    rows = [
        [f"{stage.index + 1}. {stage.name}", stage.stage.kind, teacher_name(stage) or "–", *shape(stage, vocab)]
        for stage in outcome.stages
    ]
    yield Table("Stages", ["stage", "kind", "teacher", "model", "begins with", "objective"], rows, 6)
    columns = ["stage", "state", "steps", "batch", "learning rate", "warm-up", "precision", "ZeRO"]
    yield Table("Settings", columns, [settings(stage) for stage in outcome.stages], 2)
    dones = {stage.name: (stage.done or {}).get("references") for stage in outcome.stages}
    found = [(name, facts) for name, facts in dones.items() if facts]
    if found:
        yield reference_table(found)


def reference_table(found: list[tuple[str, dict[str, Any]]]) -> Table:
    """What references cost the stages that have them: bytes that belong to the model, milliseconds a text."""
    columns = [
        "stage",
        "variant",
        "texts",
        "store",
        "index",
        "with a reference",
        "plain",
        "retrieval",
        "with references",
    ]
    rows = []
    for name, facts in found:
        times = facts["milliseconds"]
        rows.append(
            [
                name,
                facts["variant"] + (" with a gate" if facts["gate"] else ""),
                f"{facts['texts']:,}",
                f"{facts['store_bytes'] / 1e6:,.1f} MB",
                f"{facts['index_bytes'] / 1e6:,.1f} MB",
                f"{facts['matched']['held_out']:.1%}",
                *(f"{times[part]:.2f} ms" for part in ("plain", "retrieval", "with_references")),
            ]
        )
    return Table("References (RefBERT)", columns, rows, 2)


def shape(stage: StageOutcome, vocab_size: int | None) -> list[str]:
    """Cells: the model's shape, how it begins, its objective."""
    config = stage.stage
    if isinstance(config, AugmentStage):
        return [f"{config.augment.copies} more rows for each row of {config.task}", config.model, "–"]
    given, source = made_from(config)
    size = describe_shape(given.resolve(vocab_size or 1), given.preset) if given is not None else f"that of {source}"
    return [size, describe_start(config), "; ".join(describe_objective(stage))]


def describe_start(stage: TrainedStage) -> str:
    """Where the weights come from."""
    _, source = made_from(stage)
    if source is not None:
        return f"the weights of {source}"
    assert not isinstance(stage, FinetuneStage)  # it has a source
    init = stage.student.init if isinstance(stage, DistillStage) else stage.init
    if init.kind == "random":
        return "random"
    if init.kind == "svd":
        return f"{init.parts or 'the teacher'} made narrower (SVD)"
    layers = init.layers if isinstance(init.layers, str) else ", ".join(map(str, init.layers))
    whose = "teacher layers" if init.parts is None else f"layers of {init.parts}:"
    more = " and embeddings" * init.embeddings + " and masked-LM head" * init.head
    return f"{whose} {layers} (0-based){more}"


def describe_shape(model: EncoderConfig, preset: str | None) -> str:
    text = (
        f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads, "
        f"intermediate {model.intermediate_size}"
    )
    return f"{preset}: {text}" if preset else text


def settings(stage: StageOutcome) -> list[str]:
    if isinstance(stage.stage, AugmentStage):
        return [stage.name, stage.state, *["–"] * 6]
    training = stage.stage.training
    steps = stage.done["steps"] if stage.done is not None else training.steps
    early = (stage.done or {}).get("early_stopping") or {}
    how = f" of {early['at_most']:,}" if early.get("stopped") else ""
    return [
        stage.name,
        stage.state,
        f"{steps:,}{how}" if steps is not None else f"{training.epochs:g} epochs",
        f"{training.global_batch_size:,} sequences",
        f"{training.optimizer.learning_rate:g}",
        f"{training.optimizer.warmup:.0%}",
        training.precision,
        str(training.zero_stage),
    ]


# ---------------------------------------------------------------- training


def course_table(stage: StageOutcome) -> Table:
    """Losses at a few steps from the first to the last, for readers without the plots."""
    trained = [row for row in stage.metrics if "loss/total" in row]
    last = len(trained) - 1
    picked = sorted({round(i * last / (COURSE_POINTS - 1)) for i in range(COURSE_POINTS)}) if trained else []
    terms = sorted({k for row in trained for k in row if k.startswith("loss/")} - {"loss/total"})
    keys = ["loss/total", *(terms if len(terms) > 1 else []), "optim/gradient_norm", "speed/tokens_per_second"]
    heads = {"optim/gradient_norm": "gradient norm", "speed/tokens_per_second": "tokens/s"}
    rows = [[f"{trained[i]['step']:,}", *(_number(trained[i].get(key)) for key in keys)] for i in picked]
    columns = ["step", *(heads.get(key, key.removeprefix("loss/")) for key in keys)]
    return Table(f"{stage.index + 1}. {stage.name}: training loss", columns, rows, 0)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def throughput_table(outcome: Outcome) -> Table:
    columns = ["stage", "time", "sequences", "tokens", "tokens/s", "ranks", "peak memory a rank", "waiting for data"]
    rows = []
    for stage in outcome.stages:
        done = stage.done
        if done is None or isinstance(stage.stage, AugmentStage):
            continue
        memory = [row["memory/gigabytes"] for row in stage.metrics if "memory/gigabytes" in row]
        waits = [r["data/wait_seconds"] / r["speed/step_seconds"] for r in stage.metrics if r.get("speed/step_seconds")]
        rows.append(
            [
                stage.name,
                duration(done["seconds"]),
                f"{done['sequences']:,}",
                f"{done['tokens']:,}",
                f"{done['tokens_per_second']:,.0f}",
                str(done["world_size"]),
                show(max(memory, default=None), "{:.2f} GB"),
                show(sum(waits) / len(waits) if waits else None, "{:.1%}"),
            ]
        )
    return Table("Training", columns, rows)


# ---------------------------------------------------------------- latency and guesses


def latency_at(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The rows of the largest measured shape, by model: it says most about throughput and least about overhead."""
    largest = max(((row["batch_size"], row["length"]) for row in outcome.latency), default=None)
    return {row["model"]: row for row in outcome.latency if (row["batch_size"], row["length"]) == largest}


def latency_table(outcome: Outcome) -> Table:
    columns = ["model", "batch", "length", "ms (median)", "ms (least)", "tokens/s", "speed-up"]
    rows = [
        [
            row["model"],
            str(row["batch_size"]),
            str(row["length"]),
            f"{row['milliseconds_median']:.2f}",
            f"{row['milliseconds_min']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speedup']:.2f}×",
        ]
        for row in outcome.latency
    ]
    where = ""
    if outcome.latency:
        one = outcome.latency[0]
        where = f" ({one['device']}, {one['threads']} thread{'s' if one['threads'] != 1 else ''})"
    return Table(f"Latency{where}", columns, rows)


def guesses_table(outcome: Outcome) -> Table:
    rows = []
    before = None
    for row in outcome.guesses:
        words = ", ".join(f"{guess['token']} {guess['probability']:.1%}" for guess in row["guesses"])
        words += "" if row.get("has_head", True) else " (random: the model came without a masked-LM head)"
        rows.append([row["sentence"] if row["sentence"] != before else "", row["model"], words])
        before = row["sentence"]
    return Table("", ["sentence", "model", "guesses"], rows, 3)
