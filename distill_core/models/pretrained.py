"""Hugging Face folders in and out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from configs.errors import DataError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import ACTIVATIONS, Encoder

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "vocab.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Pretrained:
    """A loaded model; ``missing_head``: the folder had no masked-LM head, so it is randomly initialised."""

    encoder: Encoder
    missing_head: bool


def check_folder(source: str, who: str) -> None:
    """Raise :class:`DataError` when a local folder cannot hold a model (called before long work starts)."""
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise DataError(f"{who}: {folder} has no config.json; it is not a Hugging Face model folder.")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise DataError(
            f"{who}: {folder} holds no weights (none of {', '.join(WEIGHTS)}). Download the model's files into it, "
            "or name another folder or hub model."
        )


def read_config(source: str, who: str) -> EncoderConfig:
    """The shape of a local folder or hub model."""
    from transformers import AutoConfig

    if Path(source).is_dir():
        check_folder(source, who)
    elif source.startswith((".", "/", "~")):
        raise DataError(f"{who}: there is no folder {source}.")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{who}: {source!r} is neither an earlier stage, nor a local folder, nor a model that could be "
            f"fetched from the hub: {_first_line(error)}"
        ) from None
    if config.model_type != "bert":
        raise DataError(
            f"{who}: {source} is a {config.model_type!r} model; teachers of the BERT architecture are supported."
        )
    _check_supported(config, source, who)
    known = {name: getattr(config, name) for name in EncoderConfig.model_fields if hasattr(config, name)}
    try:
        return EncoderConfig.model_validate(known)
    except ValidationError as error:
        raise DataError(f"{who}: the config.json of {source} is not a usable shape: {_problems(error)}") from None


def _check_supported(config: Any, source: str, who: str) -> None:
    """Refuse variants of BERT that our encoder would compute wrongly."""
    if config.hidden_act not in ACTIVATIONS:
        raise DataError(
            f"{who}: {source} has hidden_act {config.hidden_act!r}; {', '.join(ACTIVATIONS)} are supported."
        )
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise DataError(f"{who}: {source} has {positions!r} position embeddings; only absolute ones are supported.")


def load(source: str, who: str) -> Pretrained:
    """The weights of a local folder or hub model in our encoder, fp32, on the CPU."""
    from transformers import BertForMaskedLM

    config = read_config(source, who)
    _no_progress_bars()
    model: Any
    info: dict[str, Any]
    try:
        model, info = BertForMaskedLM.from_pretrained(  # type: ignore[misc]
            source, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise DataError(
            f"{who}: the weights of {source} cannot be loaded: {_first_line(error)} Fetch or write them again."
        ) from None
    missing = [str(key) for key in info["missing_keys"]]
    lost = [key for key in missing if not key.startswith("cls.")]
    if lost:
        raise DataError(f"{who}: {source} lacks weights of the encoder: {', '.join(sorted(lost)[:5])} ...")
    encoder = Encoder(config)
    encoder.load_state_dict(_ours(model.state_dict()), strict=True)
    head_missing = any(key.startswith("cls.predictions.transform") for key in missing)
    return Pretrained(encoder, missing_head=head_missing)


def _ours(state: dict[str, Any]) -> dict[str, Tensor]:
    skipped = ("cls.predictions.decoder.", "cls.seq_relationship.", "bert.pooler.")
    return {k: v for k, v in state.items() if not k.startswith(skipped) and not k.endswith(".position_ids")}


def save(state: dict[str, Tensor], config: EncoderConfig, tokenizer: Path, folder: Path, pad_token_id: int = 0) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors, tokenizer files.

    Args:
        state: the encoder's fp32 state dict.
        tokenizer: the prepared corpus's ``tokenizer/`` folder.
        folder: created if missing.
    """
    from transformers import BertConfig, BertForMaskedLM

    _no_progress_bars()
    model = BertForMaskedLM(BertConfig(**config.model_dump(), pad_token_id=pad_token_id))
    result = model.load_state_dict(state, strict=False)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    lost = [key for key in result.missing_keys if key not in tied and not key.endswith("position_ids")]
    if lost or result.unexpected_keys:
        raise DataError(f"the model does not fit Hugging Face's BertForMaskedLM: {lost + result.unexpected_keys}")
    model.tie_weights()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def _no_progress_bars() -> None:
    """A bar a file would fill rank 0's log, which is a file."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    """The first line of the message as a sentence (some exceptions have no message)."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".:") + "."


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors()) + "."
