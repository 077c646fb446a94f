"""How a model is run, with the same parameters and results: layers computed twice, parts compiled."""

from __future__ import annotations

import shutil
from functools import partial

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.utils.checkpoint import checkpoint

from configs.errors import ConfigError
from distill_core.models.layer import Intermediate
from distill_core.models.parts import AddAndNorm

COMPILED = (AddAndNorm, Intermediate)
"""What lies outside attention, whose shapes are lists of lengths that change with each batch."""


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Keep of each layer only its input and its results, and compute the rest again in the backward pass.

    torch.utils.checkpoint runs the second time from the generators' states of the first, so dropout is the same and
    gradients are, to the bit.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_parts(model: nn.Module, mode: str) -> None:
    """torch.compile, in place, of the parts outside attention; ``mode``: torch's, or "off".

    Raises:
        ConfigError: on a CPU, where there is no C++ compiler.
    """
    if mode == "off":
        return
    names = [name for name in inductor.cpp.cxx if name]
    if not torch.cuda.is_available() and not any(map(shutil.which, names)):
        raise ConfigError(
            f"training.compile: {mode} builds C++ code on a CPU, but there is no compiler ({names[0]} is not found); "
            "install g++, name another one in the environment variable CXX, or take compile: off."
        )
    for part in model.modules():
        if isinstance(part, COMPILED):
            part.compile(mode=mode, dynamic=True)
