"""Hugging Face folders in and out.

Of a model from outside only numbers are believed: config.json is read here, by a list of known keys, weights come as
safetensors (of a folder of the user's also as ``pytorch_model.bin``, by torch's reader of weights alone), and what is
named by a hub name is one commit of it.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from configs import hub
from configs.errors import DataError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.families import FAMILIES, Family
from distill_core.models.parts import ACTIVATIONS

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "vocab.txt",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


FETCHED = (
    "config.json",
    *TOKENIZER_FILES,
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""What is fetched from the hub: no programs, no pickles."""


@dataclass(frozen=True)
class Pretrained:
    """A loaded model; ``missing_head``: the folder had no masked-LM head, so it is randomly initialised."""

    encoder: Encoder
    missing_head: bool


def folder_of(source: str, who: str, weights: bool = True) -> Path:
    """The folder of a model: a local one, or this machine's copy of a hub name's commit, which is fetched if need be.

    Args:
        source: a local folder, ``ORG/NAME@COMMIT`` or ``ORG/NAME``.
        weights: whether weights are needed (and fetched).

    Raises:
        DataError: it is not there, holds no model or no weights, or cannot be fetched.
    """
    if hub.is_local(source):
        if not Path(source).is_dir():
            raise DataError(f"{who}: there is no folder {source}.")
        check_folder(source, who, weights)
        return Path(source)
    from huggingface_hub import snapshot_download

    pinned = hub.pin(source, "model", who)
    name, commit = hub.split(pinned)
    try:
        found = snapshot_download(name, revision=commit, allow_patterns=[*FETCHED, *(SAFE if weights else ())])
    except Exception as error:  # of many kinds: the library's own, and those of what carries it
        raise hub.unreachable(pinned, "model", who, error) from None
    _check_snapshot(Path(found), pinned, who, weights)
    return Path(found)


def cached(source: str) -> Path | None:
    """The folder of a model that is on this machine already, if only in part; None: it is not. No network."""
    if hub.is_local(source):
        return Path(source) if Path(source).is_dir() else None
    from huggingface_hub import snapshot_download

    name, _, commit = source.partition("@")
    with suppress(OSError, ValueError):  # not there, or no name of the hub
        found = snapshot_download(name, revision=commit or None, local_files_only=True, allow_patterns=["config.json"])
        return Path(found)
    return None


def check_folder(source: str, who: str, weights: bool = True) -> None:
    """Raise :class:`DataError` when a local folder cannot hold a model (called before long work starts)."""
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise DataError(f"{who}: {folder} has no config.json; it is not a Hugging Face model folder.")
    if weights and not any((folder / name).is_file() for name in WEIGHTS):
        raise DataError(
            f"{who}: {folder} holds no weights (none of {', '.join(WEIGHTS)}). Download the model's files into it, "
            "or name another folder or hub model."
        )


def _check_snapshot(folder: Path, source: str, who: str, weights: bool) -> None:
    """What was fetched is a model, whole, with weights that are no pickles."""
    name, commit = hub.split(source)
    if not (folder / "config.json").is_file():
        raise DataError(f"{who}: {source} has no config.json; it is not a model for transformers.")
    wanted = {"model.safetensors"}
    if (folder / "model.safetensors.index.json").is_file():
        wanted = set(_json(folder / "model.safetensors.index.json", who).get("weight_map", {}).values())
    missing = sorted(file for file in wanted if not (folder / file).is_file())
    if weights and missing:
        raise DataError(
            f"{who}: {source} has no {missing[0]}, or it was not fetched. Weights from the hub are read as safetensors "
            f"alone, as pickles can hold programs. `hf download {name} --revision {commit}` fetches what there is; "
            "with --local-dir FOLDER it makes a folder to be named instead, of which pytorch_model.bin is read too, "
            "by torch's reader of weights alone."
        )


def _json(path: Path, who: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{who}: {path} cannot be read: {_first_line(error)} Fetch or write it again.") from None
    return found


def their_config(folder: Path, source: str, who: str) -> Any:
    """transformers' configuration object of a model, made from the keys of its config.json that we know.

    ``source`` names it in errors.
    """
    from transformers import AutoConfig

    facts = _json(folder / "config.json", who)
    kind = str(facts.get("model_type"))
    if kind not in FAMILIES:
        raise DataError(f"{who}: {source} is a {kind!r} model; the families {', '.join(FAMILIES)} are supported.")
    known = {key: value for key, value in facts.items() if key in FAMILIES[kind].known}
    try:
        return AutoConfig.for_model(kind, **known)
    except Exception as error:  # of many kinds: whatever a strange value meets
        raise DataError(f"{who}: the config.json of {source} is not a usable shape: {_first_line(error)}") from None


def read_config(source: str, who: str, weights: bool = True) -> EncoderConfig:
    """The shape of a local folder or hub model.

    Args:
        weights: whether a local folder without weights is refused; of a hub name they are fetched then.

    Whether the model has a pooler stands in its weights, not in its config.json: only :func:`load` says so.
    """
    return _shape(their_config(folder_of(source, who, weights), source, who), source, who)


def _shape(config: Any, source: str, who: str) -> EncoderConfig:
    family = FAMILIES[config.model_type]
    _check_supported(config, family, source, who)
    try:
        return EncoderConfig.model_validate({"family": config.model_type, **family.read(config)})
    except ValidationError as error:
        raise DataError(f"{who}: the config.json of {source} is not a usable shape: {_problems(error)}") from None


def _check_supported(config: Any, family: Family, source: str, who: str) -> None:
    """Refuse variants that our encoder would compute wrongly."""
    activation = getattr(config, family.fields.get("hidden_act", "hidden_act"))
    if activation not in ACTIVATIONS:
        raise DataError(f"{who}: {source} has hidden_act {activation!r}; {', '.join(ACTIVATIONS)} are supported.")
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise DataError(f"{who}: {source} has {positions!r} position embeddings; only absolute ones are supported.")
    if getattr(config, "is_decoder", False):
        raise DataError(f"{who}: {source} is a decoder (is_decoder: true); encoders are supported.")
    if not getattr(config, "tie_word_embeddings", True):
        raise DataError(
            f"{who}: {source} has a masked-LM decoder of its own (tie_word_embeddings: false); only decoders tied to "
            "the word embeddings are supported."
        )
    refusal = family.refusal(config)
    if refusal is not None:
        raise DataError(f"{who}: {source} has {refusal}, which is not supported.")


def load(source: str, who: str) -> Pretrained:
    """The weights of a local folder or hub model in our encoder, fp32, on the CPU.

    The encoder has a pooler if the weights hold one. A model of another class (a discriminator, a classifier) gives
    its encoder.
    """
    config = read_config(source, who)
    family = config.kin
    model, missing = read_weights(_masked_lm(family, pooler=family.pooler), source, who)
    theirs = family.fold(model.state_dict())
    pooler = {family.theirs(f"bert.pooler.dense.{part}") for part in ("weight", "bias")}
    config = config.model_copy(update={"pooler": pooler <= theirs.keys() - missing})
    encoder = Encoder(config)
    wanted = {name: family.theirs(name) for name in encoder.state_dict()}
    lost = [t for ours, t in wanted.items() if t in missing and not ours.startswith("cls.")]
    if lost:
        raise DataError(f"{who}: {source} lacks weights of the encoder: {', '.join(sorted(lost)[:5])} ...")
    encoder.load_state_dict({ours: theirs[t] for ours, t in wanted.items()}, strict=True)
    return Pretrained(encoder, missing_head=wanted["cls.predictions.transform.dense.weight"] in missing)


def read_weights(cls: Any, source: str, who: str) -> tuple[Any, set[str]]:
    """The model of transformers' class ``cls`` of ``source``, fp32, and the names that the source did not hold.

    Raises:
        DataError: the weights are missing, damaged, or of other shapes.
    """
    from transformers.utils import logging

    folder = folder_of(source, who)
    config = their_config(folder, source, who)
    no_progress_bars()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is missing is said here
    try:
        model, info = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=None if hub.is_local(source) else True,
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise DataError(
            f"{who}: the weights of {source} cannot be loaded: {_first_line(error)} Fetch or write them again."
        ) from None
    finally:
        logging.set_verbosity(before)
    return model, {str(key) for key in info["missing_keys"]}


def _masked_lm(family: Family, pooler: bool) -> Any:
    """transformers' class with a masked-LM head; ``pooler``: one that keeps the pooler too, which theirs leaves out."""
    import transformers

    theirs = getattr(transformers, family.masked_lm)
    if not pooler:
        return theirs

    def init(self: Any, config: Any) -> None:
        theirs.__init__(self, config)
        setattr(self, self.base_model_prefix, getattr(transformers, family.base)(config))

    return type(family.masked_lm, (theirs,), {"__init__": init})  # under the name that config.json is to have


def save(state: dict[str, Tensor], config: EncoderConfig, tokenizer: Path, folder: Path) -> None:
    """Write a Hugging Face folder of the model's family: config.json, model.safetensors, tokenizer files.

    Args:
        state: the encoder's fp32 state dict.
        tokenizer: the prepared corpus's ``tokenizer/`` folder.
        folder: created if missing.
    """
    from transformers import AutoConfig

    no_progress_bars()
    family = config.kin
    model = _masked_lm(family, config.pooler)(AutoConfig.for_model(config.family, **family.settings(config)))
    theirs = {family.theirs(name): value for name, value in state.items()}
    result = model.load_state_dict(theirs, strict=False)
    known = (*family.tied, *(key for key, value in model.state_dict().items() if not value.numel()))
    lost = [key for key in result.missing_keys if key not in known and not key.endswith("position_ids")]
    if lost or result.unexpected_keys:
        raise DataError(f"the model does not fit Hugging Face's {family.masked_lm}: {lost + result.unexpected_keys}")
    write_model(model, family.masked_lm, theirs, folder)
    copy_tokenizer(tokenizer, folder)


def write_model(model: Any, architecture: str, weights: dict[str, Tensor], folder: Path) -> None:
    """config.json and model.safetensors as ``save_pretrained`` writes them, with exactly these weights.

    ``save_pretrained`` finds out by storage addresses which of two tied parameters to leave out; here the decoder,
    which is tied, is never written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures, model.config.dtype = [architecture], torch.float32
    model.config.save_pretrained(folder)
    empty = {name: value for name, value in model.state_dict().items() if not value.numel()}
    tensors = {name: value.detach().to(torch.float32).contiguous() for name, value in (empty | weights).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def no_progress_bars() -> None:
    """A bar a file would fill rank 0's log, which is a file."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    """The first line of the message as a sentence (some exceptions have no message)."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".:") + "."


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors()) + "."
