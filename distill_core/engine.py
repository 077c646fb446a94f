"""DeepSpeed: the only file that knows it (and, with ``launcher/``, the only one that reads the environment).

A rank is described by :class:`Rank`; the trained module is wrapped by :class:`Engine`, which offers just what
the training loop and the checkpoint need: backward, step, gradient norm, full fp32 state out and in.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import math
import os
import urllib.parse
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import TrainingError
from distill_core.training import OptimizerConfig, TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


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

    def sum(self, values: Tensor) -> Tensor:
        """``values`` summed over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
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


# ---------------------------------------------------------------- engine


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """DeepSpeed's JSON, generated from the typed config (DeepSpeed itself accepts misspelt keys silently)."""
    bf16 = training.precision == "bf16"
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    generated: dict[str, Any] = {
        # One micro-step as DeepSpeed counts it: the loop sets the accumulation boundary itself, because the
        # number of micro-steps follows from the lengths and changes from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.optimizer.gradient_clipping,  # 1.0 if absent: always said
        "zero_optimization": zero | training.deepspeed.get("zero_optimization", {}),
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    if bf16:
        # Without it, stage 1 adds the first micro-step's gradients again at each later one (0.19.8).
        generated["bf16"]["immediate_grad_update"] = True
        generated["data_types"] = {"grad_accum_dtype": "fp32"}
    return {**training.deepspeed, **generated}


class Pace(Protocol):
    """How fast parts of the trained module move (``progressive.py``): a pure function of the step."""

    def part(self, parameter: str) -> int: ...

    def factor(self, part: int, step: int) -> float: ...


def parameter_groups(module: nn.Module, training: TrainingConfig, pace: Pace | None = None) -> list[dict[str, Any]]:
    """Weight decay on matrices only; none on biases and LayerNorms. ``part``: of ``pace``, 0 without one."""
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    spared = () if training.optimizer.decay_projections else ("objectives.",)
    for name, parameter in module.named_parameters():
        undecayed = name.endswith("bias") or "LayerNorm" in name or name.startswith(spared)
        groups.setdefault((pace.part(name) if pace else 0, undecayed), []).append(parameter)
    decay = training.optimizer.weight_decay
    return [
        {"params": groups[part, undecayed], "weight_decay": 0.0 if undecayed else decay, "part": part}
        for part, undecayed in sorted(groups)
    ]


class AdamSettings(NamedTuple):
    learning_rate: float
    eps: float
    weight_decay: float


def adam_settings(optimizer: OptimizerConfig, learning_rate: float, step: int) -> AdamSettings:
    """What torch's AdamW is given at ``step`` (from 1).

    Without bias correction, w <- (1 - lr * decay) w - lr * m / (sqrt(v) + eps). torch divides m by c1 = 1 - beta1^t and
    sqrt(v) by sqrt(c2), c2 = 1 - beta2^t; with lr c1 / sqrt(c2), eps / sqrt(c2) and decay sqrt(c2) / c1 these cancel.
    """
    if optimizer.bias_correction:
        return AdamSettings(learning_rate, optimizer.eps, optimizer.weight_decay)
    c1, c2 = (1 - beta**step for beta in optimizer.betas)
    ratio = c1 / math.sqrt(c2)
    return AdamSettings(learning_rate * ratio, optimizer.eps / math.sqrt(c2), optimizer.weight_decay / ratio)


@dataclass
class FullState:
    """World-size-free training state: fp32 weights and Adam moments by parameter name, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """``<moment>/<parameter name>``."""
    optimizer_steps: int


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
        if state is not None:
            module.load_state_dict(state.weights, strict=True)
        self.rank = rank
        self.names = [name for name, _ in module.named_parameters()]
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
        self._adam = adam
        self._pace = pace
        self._optimizer = training.optimizer
        self._decayed = [group["weight_decay"] > 0 for group in adam.param_groups]
        self._zero_stage = training.zero_stage
        self._norm = 0.0
        self._parameters = [parameter for _, parameter in module.named_parameters()]
        self.module = module
        self._make_moments(0 if state is None else state.optimizer_steps)
        if state is not None:
            self._restore(state)

    def __call__(self, *args: Any) -> Any:
        return self._engine(*args)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, total: Tensor, last: bool) -> None:
        """Accumulate gradients of a loss that is already divided by global counts; ``last`` closes the step."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; a sum of shares of a global mean is what is wanted.
        self._engine.backward(total * self.rank.world_size)
        if not last:
            self._engine.step()

    def step(self, learning_rate: float, number: int) -> None:
        """Clip, update, clear; ``number``: of the step, from 0."""
        if self._zero_stage == 0:  # the only stage in which DeepSpeed does not tell the norm
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
        settings = adam_settings(self._optimizer, learning_rate, number + 1)
        for group, decayed in zip(self._adam.param_groups, self._decayed, strict=True):
            factor = self._pace.factor(group["part"], number) if self._pace else 1.0
            group["lr"], group["eps"] = factor * settings.learning_rate, settings.eps
            group["weight_decay"] = settings.weight_decay if decayed else 0.0
        self._engine.step()

    def gradient_norm(self) -> float:
        """Global norm before clipping of the last step."""
        return self._norm if self._zero_stage == 0 else float(self._engine.get_global_grad_norm())

    # ------------------------------------------------------------ state

    def full_state(self, optimizer_steps: int) -> FullState:
        """Gather the whole state. Collective: every rank calls it; the values are kept on rank 0 only."""
        weights, moments = {}, {}
        for name, parameter in zip(self.names, self._parameters, strict=True):
            weight = self._full(parameter, None)
            if self.rank.is_first:
                weights[name] = weight.detach().to("cpu", copy=True)
            for key in MOMENTS:
                moment = self._full(parameter, key)
                if self.rank.is_first:
                    moments[f"{key}/{name}"] = moment.detach().to("cpu", copy=True)
        return FullState(weights, moments, optimizer_steps)

    def full_weights(self) -> dict[str, Tensor]:
        """fp32 weights by name on rank 0, {} elsewhere. Collective."""
        weights = {}
        for name, parameter in zip(self.names, self._parameters, strict=True):
            weight = self._full(parameter, None)
            if self.rank.is_first:
                weights[name] = weight.detach().to("cpu", copy=True)
        return weights

    def _full(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if key is None:
            value = safe_get_full_fp32_param(parameter)
            return parameter.data if value is None else value
        if self._zero_stage == 0:
            moment: Tensor = self._adam.state[parameter][key]
            return moment
        value = safe_get_full_optimizer_state(parameter, key)
        assert value is not None
        return value  # type: ignore[no-any-return]

    def _restore(self, state: FullState) -> None:
        """Masters, moments and step counter; the 16-bit weights were cast from the same fp32 values."""
        for name, parameter in zip(self.names, self._parameters, strict=True):
            self._set(parameter, None, state.weights[name])
            for key in MOMENTS:
                self._set(parameter, key, state.moments[f"{key}/{name}"])

    def _make_moments(self, steps: int) -> None:
        """Create Adam's state, which torch creates only at the first step, and link DeepSpeed's fragments to it.

        Done before the first step: DeepSpeed itself links the fragments of stages 1 and 2 after the update of the
        first parameter group, when the second group has no state yet, and its moments cannot be read any more.
        """
        optimizer = self._engine.optimizer
        if self._zero_stage == 3:
            flat = list(optimizer.fp32_partitioned_groups_flat)
        else:
            flat = [p for group in self._adam.param_groups for p in group["params"]]
        for p in flat:
            step = torch.tensor(float(steps), dtype=torch.float32, device=p.device)
            self._adam.state[p] = {"step": step} | {key: torch.zeros_like(p) for key in MOMENTS}
        if self._zero_stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.rank.device)
        if self._zero_stage == 0:
            (parameter.data if key is None else self._adam.state[parameter][key]).copy_(value)
        elif self._zero_stage == 3:  # its setter of full values fails where the ranks do not divide the size
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = torch.zeros(size * self.rank.world_size, dtype=value.dtype, device=value.device)
            padded[: value.numel()] = value.flatten()
            local = padded[self.rank.rank * size : (self.rank.rank + 1) * size]
            if key is None:
                safe_set_local_fp32_param(parameter, local)
            else:
                safe_set_local_optimizer_state(parameter, local, key)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, so that the next stage starts clean."""
        self._engine.destroy()


def check_finite(value: float, what: str, stage: str, step: int) -> None:
    """Raise :class:`TrainingError` when a loss or norm has become nan or infinite."""
    if not torch.isfinite(torch.tensor(value)):
        raise TrainingError(
            f"Stage {stage!r}, step {step}: the {what} is {value}. Lower training.optimizer.learning_rate or raise "
            "its warmup, and start again: the run continues from its last checkpoint."
        )
