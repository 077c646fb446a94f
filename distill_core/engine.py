"""DeepSpeed: with ``zero.py`` the only file that knows it (and, with ``launcher/``, one that reads the environment).

A rank is described by :class:`Rank`; the trained module is wrapped by :class:`Engine`, which offers just what
the training loop and the checkpoint need: backward, step, gradient norm, full fp32 state out and in.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import urllib.parse
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import TrainingError
from distill_core.collectives import communication
from distill_core.models.encoder import Encoder
from distill_core.optimizer import Pace, adam_settings, parameter_groups
from distill_core.reduction import ShardedStep, Step, WholeStep
from distill_core.training import TrainingConfig
from distill_core.zero import SCALER, FullState, Partitions, deepspeed_config

# ---------------------------------------------------------------- ranks


@dataclass(frozen=True)
class Rank:
    """This process among the ranks of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def sent(self, values: Tensor) -> Tensor:
        """``values`` of the host on the device: out of pinned memory, so that the host does not wait for its queue."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def sum(self, values: Tensor, group: Any = None) -> Tensor:
        """``values`` summed over the ranks, in place; ``group``: another one of all ranks."""
        if self.world_size > 1:
            with communication.timed():
                dist.all_reduce(values, group=group)
        return values


def rank_number() -> int:
    """This process's rank, before anything is started (for logs and error files)."""
    return int(os.environ.get("RANK", "0"))


def pulse_file() -> str:
    """The file in which the agent wants to read where this rank is; "" without an agent."""
    return os.environ.get("ZHENGLIU_PULSE", "")


def start_ranks(timeout_minutes: float = 30.0) -> Rank:
    """Join the process group that the launcher described in the environment (NCCL on GPUs, gloo on CPUs)."""
    environment = os.environ
    rank = int(environment.get("RANK", "0"))
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    world_size = int(environment.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if not cuda:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it even for one rank
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", "29500")
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed = _deepspeed()
    backend, timeout = "nccl" if cuda else "gloo", datetime.timedelta(minutes=timeout_minutes)
    rendezvous = environment.get("ZHENGLIU_RENDEZVOUS")
    if rendezvous is not None and rendezvous.startswith("tcp://") and not dist.is_initialized():
        store = tcp_store(rendezvous, rank, world_size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
    )
    if not cuda:
        communication.watch(deepspeed.comm.comm.cdb)
    return Rank(rank, local_rank, world_size, device)


def tcp_store(rendezvous: str, rank: int, world_size: int, timeout: datetime.timedelta) -> Any:
    """Where the ranks of several nodes meet: ``tcp://ADDRESS:PORT``, for rank 0 with ``?fd=N``.

    Rank 0 gets the listening socket from its agent. Left to itself, torch's store listens on all interfaces.
    """
    where = urllib.parse.urlsplit(rendezvous)
    listening = urllib.parse.parse_qs(where.query).get("fd")
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        str(where.hostname),
        where.port or 0,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=int(listening[0]) if listening else None,
    )


def stop_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _deepspeed() -> Any:
    """Import DeepSpeed quietly and without its compiled gloo helper.

    ``deepspeed_shm_comm`` would be built with a compiler at the first ``init_distributed``; the table is
    private, and a test runs a step with no compiler on PATH.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def c_compilers() -> list[str]:
    """The programs that Triton looks for."""
    named = os.environ.get("CC")
    return [named] if named else ["gcc", "clang"]


def fp16_is_supported() -> bool:
    """Whether this device computes in fp16, as DeepSpeed sees it."""
    _deepspeed()
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


# ---------------------------------------------------------------- engine


class Engine:
    """Student and projections under DeepSpeed."""

    def __init__(
        self,
        module: nn.Module,
        training: TrainingConfig,
        rank: Rank,
        state: FullState | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Wrap ``module`` (fp32, on the CPU); with ``state``, continue exactly from it."""
        training = training.model_copy(update={"zero_stage": training.stage_on(rank.world_size)})
        if state is not None:
            module.load_state_dict(state.weights, strict=True)
        self.rank, self.module = rank, module
        deepspeed = _deepspeed()
        adam = torch.optim.AdamW(
            parameter_groups(module.to(rank.device), training, pace),
            lr=0.0,
            betas=training.optimizer.betas,
            eps=training.optimizer.eps,
            fused=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures on every rank, asked or not
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=adam, config=deepspeed_config(training), dist_init_required=False
            )
        if training.zero_stage == 3:
            _name_shared_weights(module)
        self._adam, self._pace, self._training = adam, pace, training
        self._decayed = [group["weight_decay"] > 0 for group in adam.param_groups]
        optimizer = self._engine.optimizer
        self._partitions = Partitions(module, optimizer, adam, training.zero_stage, rank)
        self._partitions.make_moments(0 if state is None else state.optimizer_steps)
        self._skipped = (0, 0) if state is None else state.skipped
        self._own: Step | None = None
        clipping, sent = training.optimizer.gradient_clipping, self._engine.communication_data_type
        if training.zero_stage == 0:
            self._own = WholeStep(adam, clipping, rank, sent)
        elif training.precision == "bf16" and training.zero_stage == 1 and training.offload == "none":
            self._own = ShardedStep(optimizer, adam, clipping, rank, sent)
            if rank.device.type == "cuda" and rank.world_size > 1:
                self._own.send_early(list(module.parameters()))
        if self._own is not None:
            self._own.skipped += torch.tensor(self._skipped, device=rank.device)
        if training.precision == "fp16":
            optimizer.loss_scaler.raise_error_at_min_scale = False  # too many skipped steps are an error of ours
        if state is not None:
            self._partitions.restore(state)
            for name, value in (state.scaler or {}).items():
                setattr(optimizer.loss_scaler, name, value)

    def __call__(self, *args: Any) -> Any:
        self.settle()
        return self._engine(*args)

    def settle(self) -> None:
        """Before the module is used past the engine: what follows on the device sees the last step's weights."""
        if self._own is not None:
            self._own.settle()

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, total: Tensor, last: bool) -> None:
        """Accumulate gradients of a loss that is already divided by global counts; ``last`` closes the step."""
        if self._own is not None:
            self._own.backward(total, last)
            return
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; a sum of shares of a global mean is what is wanted.
        self._engine.backward(total * self.rank.world_size)
        if not last:
            self._engine.step()

    def step(self, learning_rate: float, number: int) -> None:
        """Clip, update, clear; ``number``: of the step, from 0."""
        optimizer = self._training.optimizer
        settings = adam_settings(optimizer, learning_rate, number + 1 - self._skipped[0])
        for group, decayed in zip(self._adam.param_groups, self._decayed, strict=True):
            factor = self._pace.factor(group["part"], number) if self._pace else 1.0
            group["lr"], group["eps"] = factor * settings.learning_rate, settings.eps
            group["weight_decay"] = settings.weight_decay if decayed else 0.0
        if self._own is not None:
            self._own.step()
            return
        self._engine.step()
        if getattr(self._engine.optimizer, "overflow", False):
            self._skipped = (self._skipped[0] + 1, self._skipped[1] + 1)
        else:
            self._skipped = (self._skipped[0], 0)

    def gradient_norm(self) -> float:
        """Global norm before clipping of the last step. Waits for it."""
        self.settle()
        return float(self._engine.get_global_grad_norm() if self._own is None else self._own.norm)

    def skipped(self) -> tuple[int, int]:
        """Steps left out since their gradients were not finite: in all, and in a row up to the last. Waits for it."""
        self.settle()
        if self._own is not None:
            total, row = self._own.skipped.tolist()
            self._skipped = (int(total), int(row))
        return self._skipped

    def loss_scale(self) -> float | None:
        """fp16: what losses are multiplied by before the backward pass."""
        return float(self._engine.optimizer.loss_scaler.cur_scale) if self._training.precision == "fp16" else None

    def full_state(self, steps: int) -> FullState:
        """The whole state after ``steps``. Collective: every rank calls it; the values are kept on rank 0 only."""
        self.settle()
        scaler = self._engine.optimizer.loss_scaler if self._training.precision == "fp16" else None
        kept = None if scaler is None else {name: getattr(scaler, name) for name in SCALER}
        skipped = self.skipped()
        return FullState(*self._partitions.gather(), steps - skipped[0], skipped, kept)

    def full_weights(self) -> dict[str, Tensor]:
        """fp32 weights by name on rank 0, {} elsewhere. Collective."""
        self.settle()
        return self._partitions.weights()

    def close(self) -> None:
        """Release hooks and buffers, so that the next stage starts clean."""
        if self._own is not None:
            self._own.close()
        self._engine.destroy()


def _name_shared_weights(module: nn.Module) -> None:
    """Tell DeepSpeed that decoders use the word embeddings' weights.

    It would find out in its first forward pass, but a run that is continued may evaluate before it.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for part in module.modules():
        if isinstance(part, Encoder):
            register_external_parameter(part.cls.predictions, part.bert.embeddings.word_embeddings.weight)


def check_finite(value: float, what: str, stage: str, step: int) -> None:
    """Raise :class:`TrainingError` when a loss or norm has become nan or infinite."""
    if not torch.isfinite(torch.tensor(value)):
        raise TrainingError(
            f"Stage {stage!r}, step {step}: the {what} is {value}. Lower training.optimizer.learning_rate or raise "
            "its warmup, and start again: the run continues from its last checkpoint."
        )


def check_skipped(in_row: int, limit: int, stage: str, step: int) -> None:
    """Raise :class:`TrainingError` when more than ``limit`` steps in a row were left out."""
    if in_row > limit:
        raise TrainingError(
            f"Stage {stage!r}, step {step}: the last {in_row} steps were left out, since their gradients were not "
            f"finite (training.max_skipped_steps allows {limit}). With precision: fp16, values of the student or the "
            "teacher have outgrown fp16: take bf16, or fp32. Otherwise lower training.optimizer.learning_rate; the run "
            "continues from its last checkpoint."
        )
