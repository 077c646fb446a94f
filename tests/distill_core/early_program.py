"""The program of one rank in test_early_stopping_ranks.py: stages that stop early, whole and interrupted.

Usage: python early_program.py CORPUS TEACHER OUT: writes OUT/results.json, for each case what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import Requeue
from configs.loader import validate
from data_prep.corpus import Corpus
from distill_core import checkpoint, stage
from distill_core.config import RunConfig
from distill_core.engine import Rank
from distill_core.evaluate.pseudo_perplexity import pseudo_perplexity, texts
from distill_core.models import pretrained
from distill_core.record import read_done
from distill_core.stopping import stopping
from tests.distill_core.beside_program import Stop, curves, student
from tests.distill_core.cases import carry_out

CASES = [("fp32", 0), ("bf16", 3)]
STEPS, SEQUENCES = 12, 2
ENDS = {2: 6, 3: 8}
"""patience -> the step after which the stage ends, as no evaluation but the first counts (``min_delta``)."""


def run_config(
    corpus: Corpus, teacher: str, folder: Path, precision: str, zero: int, patience: int = 2, beside: bool = False
) -> RunConfig:
    """One student that stops early, or two side by side, of which the second does not. Dropout is on."""
    training = {
        "steps": STEPS,
        "global_batch_size": 12,
        "micro_batch_tokens": 150,
        "precision": precision,
        "zero_stage": zero,
        "evaluate_every": 2,
        "evaluate_sequences": 12,
        "checkpoint_every": 4,
        "log_every": 3,
    }
    early = {"metric": "pseudo_perplexity", "patience": patience, "min_delta": 1e9, "sequences": SEQUENCES}
    terms = [{"kind": "kd_ce"}, {"kind": "mlm"}]
    stages = [student("short", 18, 2, terms, {**training, "early_stopping": early, "select": "best"})]
    if beside:
        stages.append({**student("long", 12, 1, terms, training), "beside": "short"})
    for each in stages:
        each["teacher"] = [{"source": teacher, "head_check": "off"}]
    data = {**corpus.manifest["identity"], "folder": str(corpus.folder)}
    config = validate({"name": "run", "output": str(folder), "data": data, "stages": stages}, RunConfig)
    (config.folder / "logs").mkdir(parents=True, exist_ok=True)
    return config


def left(config: RunConfig, index: int = 0) -> dict[str, Any]:
    """What does not depend on the clock of all that a finished stage leaves; files by their hashes."""
    folder = config.stage_folder(index)
    found, _ = checkpoint.newest(folder / "checkpoints")
    done = read_done(folder)
    assert found is not None and done is not None
    names = ("steps", "sequences", "tokens", "evaluation", "selected_step", "early_stopping")
    files = [found.folder / "weights.safetensors", found.folder / "moments.safetensors"]
    return {
        "done": {name: done[name] for name in names},
        "files": [stage.file_hash(path) for path in (*files, folder / "model" / "model.safetensors")],
        "state": {name: found.facts[name] for name in ("step", "evaluated", "early_stopping")},
        "curves": curves(config, index),
    }


# ---------------------------------------------------------------- interruptions


def before_the_last_checkpoint(corpus: Corpus, config: RunConfig, rank: Rank) -> None:
    """The evaluation that ends the stage is made, and lost with the process."""
    whole = checkpoint.save

    def save(folder: Path, step: int, *more: Any) -> None:
        if step == ENDS[2]:
            raise Stop
        whole(folder, step, *more)

    interrupted(lambda: stage.run_stages(config, [0], corpus, rank), checkpoint, "save", save)


def before_it_is_written(corpus: Corpus, config: RunConfig, rank: Rank) -> None:
    """Behind the checkpoint of the last step, before model and DONE.json."""

    def write_model(*_: Any) -> None:
        rank.barrier()  # of the others, which wait for the end
        raise Stop

    def run() -> None:
        stage.run_stages(config, [0], corpus, rank)
        raise Stop  # the rank that does not write

    interrupted(run, stage, "write_model", write_model)


def by_a_signal(corpus: Corpus, config: RunConfig, rank: Rank) -> None:
    """To the second rank, in a step behind which there is an evaluation: a checkpoint is written, and none made."""
    whole = stage.train_step

    def train_step(parts: Any, step: Any, wait: float) -> Any:
        stopping.wanted = rank.rank == 1 and step.number == 3
        return whole(parts, step, wait)

    interrupted(lambda: stage.run_stages(config, [0], corpus, rank), stage, "train_step", train_step)
    stopping.wanted = False


def interrupted(run: Callable[[], None], where: Any, name: str, instead: Any) -> None:
    whole = getattr(where, name)
    setattr(where, name, instead)
    try:
        run()
    except (Stop, Requeue):
        pass
    else:
        raise AssertionError("the stage came to its end")
    finally:
        setattr(where, name, whole)


WAYS = {f.__name__: f for f in (before_the_last_checkpoint, before_it_is_written, by_a_signal)}


# ---------------------------------------------------------------- cases


def steps_taken(run: Callable[[], None]) -> int:
    whole, taken = stage.train_step, []

    def train_step(parts: Any, step: Any, wait: float) -> Any:
        taken.append(step.number)
        return whole(parts, step, wait)

    stage.train_step = train_step
    try:
        run()
    finally:
        stage.train_step = whole
    return len(taken)


def run_case(corpus: Corpus, teacher: str, rank: Rank, precision: str, zero: int, out: Path) -> dict[str, Any]:
    def config(name: str, **fields: Any) -> RunConfig:
        return run_config(corpus, teacher, out / f"{precision}-{zero}-{name}", precision, zero, **fields)

    straight, patient, beside = config("straight"), config("patient", patience=3), config("beside", beside=True)
    asked = steps_taken(lambda: stage.run_stages(straight, [0], corpus, rank))
    stage.run_stages(patient, [0], corpus, rank)
    together = steps_taken(lambda: stage.run_stages(beside, [0, 1], corpus, rank))
    stage.run_stages(beside, [1], corpus, rank)  # finished, and skipped
    resumed, again = {}, {}
    for name, way in WAYS.items():
        broken = config(name)
        way(corpus, broken, rank)
        rank.barrier()
        again[name] = steps_taken(lambda run=broken: stage.run_stages(run, [0], corpus, rank))  # type: ignore[misc]
        resumed[name] = left(broken) if rank.is_first else {}
    first = left(straight) if rank.is_first else {}
    skipped = steps_taken(lambda: stage.run_stages(straight, [0], corpus, rank))
    less, more = (config("straight", patience=patience) for patience in (1, 3))
    idle = steps_taken(lambda: stage.run_stages(less, [0], corpus, rank))
    further = steps_taken(lambda: stage.run_stages(more, [0], corpus, rank))
    rank.barrier()
    if not rank.is_first:
        return {}
    return {
        "asked": [asked, together, skipped, idle, further],
        "again": again,
        "straight": first,
        "resumed": resumed,
        "patient": left(patient),
        "further": left(more),
        "beside": [left(beside, 0), left(beside, 1)["done"]["steps"]],
        "alone": by_one_rank(corpus, patient),
    }


def by_one_rank(corpus: Corpus, config: RunConfig) -> dict[str, float]:
    """The pseudo-perplexity of the model that was kept, as the end of a run measures it."""
    encoder = pretrained.load(str(config.stage_folder(0) / "model"), "test").encoder
    found = pseudo_perplexity(encoder, texts(corpus, SEQUENCES, config.seed), corpus.special_ids)
    return {"per_sentence": found.per_sentence, "per_token": found.per_token, "tokens": found.tokens}


if __name__ == "__main__":
    carry_out(run_case, CASES)
