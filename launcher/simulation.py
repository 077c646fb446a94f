"""How much memory a micro-step takes: the real models and losses are run on tensors that have shapes and no memory.

What is alive at each moment is added up, so that the plan knows what the code does, whatever becomes of it: which rows
have logits, what the backward pass keeps, in what pieces losses are made.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill_core.batch import Batch
from distill_core.features import Features
from distill_core.frozen import encoder_of
from distill_core.kernels import sized_for_a_gpu
from distill_core.models.attention import Kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.running import checkpoint_layers
from distill_core.objective import Distillation, Objective, Teacher
from distill_core.tasks.model import StageModel, TaskModel
from distill_core.tasks.rows import TaskKind

SIMULATED = 4096
"""Tokens that are simulated at most, but for four sequences at least."""
LABELS = 16
"""Of a task; their number hardly matters."""


@dataclass(frozen=True)
class Work:
    """A micro-step of a stage: its models, what its losses ask for, and how much there is at once."""

    student: EncoderConfig
    teachers: tuple[EncoderConfig, ...]
    objectives: Callable[[], list[Objective]]
    """Makes them: one a teacher."""
    dtype: torch.dtype
    tokens: int
    length: int
    masked: float
    """Share of the tokens that are masked."""
    sampled: float
    task: TaskKind | None = None
    checkpointing: bool = False
    """Of activations."""
    gpu: bool = False
    """Whether it is cut into a GPU's pieces: long chunks of logits, whole feed-forward networks."""


@dataclass(frozen=True)
class Peak:
    """Bytes alive at the peak of a micro-step beside weights, gradients and optimizer state.

    ``complete``: the losses' own work is among them; else only what models keep for them.
    """

    activations: float
    logits: float
    complete: bool


def simulate(work: Work) -> Peak:
    """The peak of a forward and backward pass.

    For a CPU, a large one is extrapolated from two smaller ones: attention and losses go in pieces of one size, so that
    a peak grows by the same bytes with each sequence, while the time to go through all pieces would be a minute.
    """
    length = max(1, min(work.length, work.tokens))
    sequences, some = work.tokens // length, max(4, SIMULATED // length)
    if work.gpu or sequences <= some:  # a GPU's pieces are few, and too long to be seen in small micro-steps
        return _simulate(work)
    half, whole = (_simulate(replace(work, tokens=n * length)) for n in (some // 2, some))
    more = (sequences - some) / (some - some // 2)

    def at_full_size(small: float, large: float) -> float:
        return large + more * (large - small)

    return Peak(
        at_full_size(half.activations, whole.activations), at_full_size(half.logits, whole.logits), whole.complete
    )


def _simulate(work: Work) -> Peak:
    try:
        return _run(work, losses=True)
    except Exception:  # a loss may need to see numbers (BERT-EMD's transport); then the models alone have to do
        return _run(work, losses=False)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all storages that operators have made and nothing has freed."""

    def __init__(self, vocab_size: int, ignored: Sequence[Tensor]) -> None:
        """``ignored``: weights, which are reckoned elsewhere, with all their views."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_size = vocab_size
        self.now = {"activations": 0, "logits": 0}
        self.peak = dict(self.now)
        self._seen: dict[int, Any] = {}
        self._kept = [tensor.untyped_storage() for tensor in ignored]
        self._ignored = {storage._cdata for storage in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen or key in self._ignored:
            return
        kind = "logits" if tensor.dim() > 1 and tensor.shape[-1] == self.vocab_size else "activations"
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.now[kind] -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now[kind] += size
        if sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)


def _run(work: Work, losses: bool) -> Peak:
    pieces = sized_for_a_gpu() if work.gpu else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), _default_dtype(work.dtype), pieces:
        student = _model(work.student, work)
        if work.checkpointing:
            checkpoint_layers(encoder_of(student).bert.encoder.layer)
        objectives = work.objectives()
        module = Distillation(student, objectives)
        teachers = [
            Teacher(_model(shape, work), objective.needs().teacher, place)
            for place, (shape, objective) in enumerate(zip(work.teachers, objectives, strict=bool(work.teachers)))
        ]
        weights = [p for owner in (module, *teachers) for p in owner.parameters()]
        for parameter in module.parameters():  # gradients are reckoned elsewhere, too
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))  # type: ignore[no-untyped-call]
        with _default_dtype(torch.float32):
            length = max(1, min(work.length, work.tokens))
            batch = batch_of(work, [length] * max(1, work.tokens // length))
            counts = {name: torch.tensor(max(1.0, value)) for name, value in batch.counts().items()}
            with Alive(work.student.vocab_size, weights) as alive:
                taught: list[Features] = [teacher(batch) for teacher in teachers]
                if losses:
                    total = module(batch, taught or [Features()], counts, 0.0).total
                else:
                    total = _plain_sum(student(batch, module.request))
                total.backward()
    return Peak(alive.peak["activations"], alive.peak["logits"], losses)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _model(shape: EncoderConfig, work: Work) -> StageModel:
    # Dropout within attention draws a seed, a number that tensors without memory do not have. Its masks are made part
    # by part, as large as the probabilities beside them.
    return model_of(shape.model_copy(update={"attention_probs_dropout_prob": 0.0}), work)


def model_of(shape: EncoderConfig, work: Work) -> StageModel:
    """A model of the stage with random weights."""
    encoder = Encoder(shape)
    return encoder if work.task is None else TaskModel(encoder, work.task, [str(n) for n in range(LABELS)])


def batch_of(work: Work, lengths: Sequence[int], kernel: Kernel = "runs") -> Batch:
    """Sequences of these lengths; ids and labels are 0."""
    count = len(lengths)
    batch = Batch.of([[0] * length for length in lengths], kernel)
    n = batch.n_tokens
    batch.rows = _every(n, work.masked)
    batch.labels = torch.zeros_like(batch.rows)
    batch.sampled = _every(n, work.sampled)
    batch.order = torch.zeros(count, dtype=torch.int64)
    if work.task is not None:
        batch.task = work.task
        shape = {"tokens": (n,), "span": (count, 2)}.get(work.task, (count,))
        batch.targets = torch.zeros(shape, dtype=torch.float32 if work.task == "regression" else torch.int64)
    return batch


def _every(tokens: int, share: float) -> Tensor:
    """Rows that make up a share of the tokens."""
    wanted = max(1, round(tokens * share)) if share else 0
    return torch.linspace(0, tokens - 1, wanted).long()


def _plain_sum(features: Features) -> Tensor:
    """A number that depends on all features, in place of the losses."""
    found = [*features.hidden.values(), *features.logits.values()]
    found += [t for heads in features.heads.values() for t in heads]
    found += [t for t in (features.pooled, features.task) if t is not None]
    total = found[0].float().sum()
    for tensor in found[1:]:
        total = total + tensor.float().sum()
    return total
