"""Checkpoints of a running stage: the only file that writes or reads them.

    STAGE/checkpoints/step-00001000/
        weights.safetensors    fp32 student and projections, by parameter name
        moments.safetensors    Adam's exp_avg and exp_avg_sq, "<moment>/<parameter name>"
        state.json             step, optimizer steps, skipped steps, loss scaler (fp16), identity of the stage
        manifest.json          size and xxh3-128 of each file; written last

Nothing depends on the number of ranks and nothing is a pickle. Rank 0 gathers and writes; the folder is built
aside, synced and renamed, so a checkpoint under its final name is whole or (bit rot) found out by its hashes.
There is no ``latest`` file: the newest sound folder is the one that counts. Randomness needs no state: masks and
order are pure functions of the step, and the dropout generator is seeded anew from (seed, stage, step,
micro-batch, rank).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError, output_error
from configs.loader import differences
from data_prep.atomic import sync
from data_prep.shards import file_hash
from distill_core.engine import Engine, Rank
from distill_core.zero import FullState

FILES = ("weights.safetensors", "moments.safetensors", "state.json")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint on disk."""

    folder: Path
    step: int
    identity: dict[str, Any]
    facts: dict[str, Any]
    """The whole of state.json."""

    def read(self) -> FullState:
        """The state (fp32, on the CPU)."""
        try:
            weights = load_file(self.folder / "weights.safetensors")
            moments = load_file(self.folder / "moments.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The checkpoint {self.folder} cannot be read: {error}.") from None
        skipped = tuple(self.facts.get("skipped", (0, 0)))
        return FullState(weights, moments, self.facts["optimizer_steps"], skipped, self.facts.get("loss_scaler"))


def save(
    folder: Path,
    step: int,
    engine: Engine,
    identity: dict[str, Any],
    rank: Rank,
    keep_last: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint of ``step`` and drop all but the newest ``keep_last``. Collective.

    ``more``: what else is to stand in state.json.

    Raises:
        OutputError: on rank 0, when the folder cannot be written; earlier checkpoints stay as they were.
    """
    state = engine.full_state(step)
    if rank.is_first:
        try:
            _write(folder, step, state, {**(more or {}), "identity": identity})
            _drop_old(folder, keep_last)
        except OSError as error:
            raise output_error(folder, error) from error
        except SafetensorError as error:  # its writer wraps the operating system's error in a text
            raise output_error(folder, _as_os_error(error)) from error
    rank.barrier()


def _as_os_error(error: SafetensorError) -> OSError:
    text = str(error)
    number = 28 if "os error 28" in text else 5
    return OSError(number, text)


def _write(folder: Path, step: int, state: FullState, more: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = folder / f".tmp-{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        save_file(state.weights, aside / "weights.safetensors")
        save_file(state.moments, aside / "moments.safetensors")
        facts = {"step": step, "optimizer_steps": state.optimizer_steps, "skipped": state.skipped}
        facts |= {"loss_scaler": state.scaler, **more}
        (aside / "state.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        files = {name: {"bytes": (aside / name).stat().st_size, "xxh3": file_hash(aside / name)} for name in FILES}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for name in (*FILES, "manifest.json"):
            sync(aside / name)
        sync(aside)
        final = folder / f"step-{step:08d}"
        if final.exists():  # the same step again after a resume: the old one is replaced whole
            shutil.rmtree(final)
        os.replace(aside, final)
        sync(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _drop_old(folder: Path, keep_last: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint, and a sentence for each newer one that had to be passed over."""
    passed: list[str] = []
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        trouble = _trouble(candidate)
        if trouble is None:
            facts = json.loads((candidate / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(candidate, facts["step"], facts["identity"], facts), passed
        passed.append(f"The checkpoint {candidate} is damaged ({trouble}); falling back to the one before it.")
    return None, passed


def _trouble(candidate: Path) -> str | None:
    try:
        manifest = json.loads((candidate / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        if set(manifest["files"]) != set(FILES):
            return f"its manifest does not name {', '.join(FILES)}"
        for name, facts in manifest["files"].items():
            size = (candidate / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
            if file_hash(candidate / name) != facts["xxh3"]:
                return f"{name} does not have the content it was written with"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def check_identity(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse to continue something that was begun under other identity fields, showing the difference."""
    changed = differences(before, now)
    if changed:
        shown = "\n  - ".join(changed[:20])
        raise CheckpointError(
            f"{what} was made under another configuration and cannot be continued with this one:\n  - {shown}\n"
            "Go back to the old values, or give the run another `name` (runtime fields such as logging, workers, "
            "processes or training.steps may change freely)."
        )
