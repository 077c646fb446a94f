"""What a student with references has beside the plain model: in ``model/references/`` and in its export.

references.json      the settings, and the teacher's width
weights.safetensors  fp32: the map of the teacher's vectors, and the gate
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import DataError
from data_prep.atomic import sync
from distill_core.models.encoder import Encoder
from distill_core.references.config import ReferencesConfig
from distill_core.references.encoder import ReferencedEncoder, encoder_of, referenced
from distill_core.references.files import unseal
from distill_core.tasks.model import StageModel, TaskModel

FOLDER = "references"
WEIGHTS, SETTINGS = "weights.safetensors", "references.json"
_PREFIXES = ("references.", "encoder.references.")


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's state dict without the weights for references, and those (names without prefix; {}: a plain model)."""
    plain = {name: value for name, value in state.items() if not name.startswith(_PREFIXES)}
    extra = {n.removeprefix("encoder.").removeprefix("references."): state[n] for n in state if n not in plain}
    return plain, extra


def save_extra(model: StageModel, extra: dict[str, Tensor], folder: Path) -> None:
    """Write ``folder/references/`` of a model (nothing for a plain one)."""
    found = referenced(model)
    if found is None:
        return
    here = folder / FOLDER
    here.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in extra.items()}, here / WEIGHTS)
    facts = {"settings": found.settings.model_dump(), "teacher_width": found.teacher_width}
    (here / SETTINGS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for path in (here / WEIGHTS, here / SETTINGS, here):
        sync(path)


def has_extra(folder: Path) -> bool:
    """Whether a model folder is that of a student with references."""
    return (folder / FOLDER / SETTINGS).is_file()


def read_extra(folder: Path) -> tuple[ReferencesConfig, int, dict[str, Tensor]]:
    """(settings, the teacher's width, weights) of a model folder.

    Raises:
        DataError: they are missing or damaged.
    """
    here = folder / FOLDER
    try:
        facts = json.loads((here / SETTINGS).read_text(encoding="utf-8"))
        settings = ReferencesConfig.model_validate(facts["settings"])
        return settings, int(facts["teacher_width"]), load_file(here / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError) as error:
        raise DataError(
            f"{here} cannot be read ({type(error).__name__}: {error}). A student with references has {SETTINGS} and "
            f"{WEIGHTS} there; copy or export the model again."
        ) from None


def load_extra(model: StageModel, folder: Path) -> StageModel:
    """``model`` (the plain one of ``folder``) with its weights for references."""
    settings, width, extra = read_extra(folder)
    return _around(model, settings, width, extra, folder)


def with_references(
    student: Encoder, settings: ReferencesConfig, teacher_width: int, source: str | None, who: str
) -> ReferencedEncoder:
    """The student of a stage: around ``student``, freshly drawn or (from an earlier such student) going on.

    Args:
        source: where the student's weights came from, if they were taken along whole.

    Raises:
        DataError: ``source`` has references of another variant or from a teacher of another width.
    """
    if source is None or not has_extra(Path(source)):
        return ReferencedEncoder(student, settings, teacher_width)
    before, width, extra = read_extra(Path(source))
    theirs, ours = ((s.variant, s.gate, w) for s, w in ((before, width), (settings, teacher_width)))
    if theirs != ours:
        shown = [f"variant {variant}, gate {gate}, teacher's width {wide}" for variant, gate, wide in (theirs, ours)]
        raise DataError(
            f"{who}: the student begins as {source}, which reads references otherwise than this stage ({shown[0]}; "
            f"here: {shown[1]}). Give the stage the same references.variant and references.gate and a teacher of the "
            "same width."
        )
    found = _around(student, settings, teacher_width, extra, Path(source))
    assert isinstance(found, ReferencedEncoder)
    return found


def _around(
    model: StageModel, settings: ReferencesConfig, width: int, extra: dict[str, Tensor], folder: Path
) -> StageModel:
    found = ReferencedEncoder(encoder_of(model), settings, width)
    try:
        found.references.load_state_dict(extra)
    except RuntimeError as error:
        raise DataError(f"{folder / FOLDER} does not fit its model: {error}. Copy or export it again.") from None
    if not isinstance(model, TaskModel):
        return found
    model.encoder = found
    return model


def copy_references(model_folder: Path, made: Path, target: Path) -> None:
    """Complete the export ``target`` of a student with references: weights, index and store (nothing for others).

    Args:
        made: STAGE/references.

    Raises:
        DataError: index or store are damaged.
    """
    if not has_extra(model_folder):
        return
    shutil.copytree(model_folder / FOLDER, target / FOLDER)
    for name in ("index", "store"):
        unseal(made / name, thorough=True)
        shutil.copytree(made / name, target / FOLDER / name)
