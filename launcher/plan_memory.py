"""The memory of one rank, by part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distill_core.training import TrainingConfig
from launcher import plan_options
from launcher.simulation import Peak, Work

PROCESS = 0.65e9
"""What a rank takes on a CPU before it has any tensor: Python and its libraries."""
KERNELS = {"bf16": 0.15e9, "fp16": 0.15e9, "fp32": 0.03e9}
"""What steps take there beside tensors: kernels made for their shapes, packed matrices, sockets."""
HEAP = 0.5
"""Of what a micro-step has alive: what the heap holds besides, as its blocks differ in size from step to step."""
LOADED = 2.0
"""Copies in fp32 of a model that is being read: transformers' and ours."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the peak of a micro-step of ``tokens`` tokens."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 masters and Adam's moments."""
    teacher: float
    activations: float
    logits: float
    kernels: float
    """What libraries take in a step. Here and below: only on a CPU, as device memory holds tensors alone."""
    heap: float
    """Share of the activations and logits that the heap holds besides."""
    process: float
    """Python and its libraries."""
    loading: float
    """While teachers are read, in place of all that a step takes."""
    tokens: float

    @property
    def lasting(self) -> float:
        """What does not depend on the size of a micro-step."""
        return self.weights + self.gradients + self.optimizer + self.teacher

    @property
    def workspace(self) -> float:
        return self.kernels + self.heap * (self.activations + self.logits)

    @property
    def total(self) -> float:
        return self.process + max(self.loading, self.lasting + self.activations + self.logits + self.workspace)

    def at(self, tokens: float) -> Memory:
        """With micro-steps of another size."""
        ratio = tokens / self.tokens
        return replace(self, activations=ratio * self.activations, logits=ratio * self.logits, tokens=tokens)

    def most_tokens(self, capacity: float) -> float:
        """Tokens of the largest micro-step that fits into ``capacity`` bytes; 0 if none does."""
        each = (1 + self.heap) * (self.activations + self.logits) / self.tokens
        return max(0.0, capacity - self.process - self.kernels - self.lasting) / each if each else float("inf")


def memory(work: Work, peak: Peak, trained: int, training: TrainingConfig, zero: int, ranks: int, gpu: bool) -> Memory:
    """One rank's memory.

    Args:
        peak: of ``work``, as it was simulated.
        trained: parameters of student and projections.
        zero: the ZeRO stage.
    """
    sizes = [shape.parameters() for shape in work.teachers]
    each = plan_options.trained(training, zero, ranks)
    return Memory(
        weights=each.weights * trained,
        gradients=each.gradients * trained,
        optimizer=each.optimizer * trained,
        teacher=sum(plan_options.teacher(shape, training, ranks) for shape in work.teachers),
        activations=peak.activations,
        logits=peak.logits,
        kernels=0.0 if gpu else KERNELS[training.precision],
        heap=0.0 if gpu else HEAP,
        process=0.0 if gpu else PROCESS,
        loading=0.0 if gpu else LOADED * 4.0 * max(sizes, default=0),
        tokens=work.tokens,
    )
