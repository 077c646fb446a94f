"""How a model is run, with the same parameters and results: layers computed twice, parts compiled."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from torch.utils.checkpoint import checkpoint

from configs.errors import ConfigError
from distill_core.engine import c_compilers
from distill_core.models.layer import Intermediate
from distill_core.models.parts import AddAndNorm

COMPILED = (AddAndNorm, Intermediate)
"""What lies outside attention, whose shapes are lists of lengths that change with each batch."""
MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Of the configuration -> torch's. None with CUDA graphs: each part would have its own, whose outputs
the next part's replay may overwrite while a backward pass still needs them, and another one for each number of rows."""
VARIANTS = 256
"""That are compiled of the parts together, which are all one function for torch; beyond its default of 8 it runs the
rest uncompiled, and says so in one log line only."""


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Keep of each layer only its input and its results, and compute the rest again in the backward pass.

    torch.utils.checkpoint runs the second time from the generators' states of the first, so dropout is the same and
    gradients are, to the bit.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_parts(model: nn.Module, mode: str) -> None:
    """torch.compile, in place, of the parts outside attention; ``mode``: a key of ``MODES``, or "off".

    Raises:
        ConfigError: there is no compiler for what torch makes: C++ on a CPU; on a GPU Triton and a C compiler.
    """
    if mode == "off":
        return
    check_compiler(mode)
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * VARIANTS)
    for part in model.modules():
        if isinstance(part, COMPILED):
            part.compile(mode=MODES[mode], dynamic=True)


def check_compiler(mode: str) -> None:
    """Raise :class:`ConfigError` where there is no compiler for what torch makes."""
    who = f"training.compile: {mode}"
    if not torch.cuda.is_available():
        names = [name for name in inductor.cpp.cxx if name]
        if not any(map(shutil.which, names)):
            raise ConfigError(
                f"{who} builds C++ code on a CPU, but there is no compiler ({names[0]} is not found); install g++, "
                "name another one in the environment variable CXX, or take compile: off."
            )
        return
    if importlib.util.find_spec("triton") is None:
        raise ConfigError(
            f"{who} makes Triton kernels on a GPU, but Triton is not installed; pip install triton, or take compile: "
            "off."
        )
    names = c_compilers()
    if not any(map(shutil.which, names)):
        raise ConfigError(
            f"{who} builds the launchers of its GPU kernels with a C compiler, but {names[0]} is not found; "
            "install gcc, name another one in the environment variable CC, or take compile: off."
        )
