"""ZeRO as DeepSpeed offers it: its configuration, and the whole training state out of its partitions and back in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_core.training import TrainingConfig

if TYPE_CHECKING:
    from distill_core.engine import Rank

MOMENTS = ("exp_avg", "exp_avg_sq")


OFFLOADED = {"optimizer": ("offload_optimizer",), "parameters": ("offload_optimizer", "offload_param")}
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler remembers."""


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """DeepSpeed's JSON, generated from the typed config (DeepSpeed itself accepts misspelt keys silently)."""
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.zero_stage in (1, 2):
        # Gradients to the rank that keeps them, instead of all of them to all ranks.
        zero["use_multi_rank_bucket_allreduce"] = False
    if training.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    for part in OFFLOADED.get(training.offload, ()):
        zero[part] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    generated: dict[str, Any] = {
        # One micro-step as DeepSpeed counts it: the loop sets the accumulation boundary itself, because the
        # number of micro-steps follows from the lengths and changes from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.optimizer.gradient_clipping,  # 1.0 if absent: always said
        "zero_optimization": zero | training.deepspeed.get("zero_optimization", {}),
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused Adam runs on a CPU too, and nothing has to be compiled
        "steps_per_print": 1_000_000_000,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},  # else each step waits for the device
    }
    if training.precision != "fp32":
        generated["data_types"] = {"grad_accum_dtype": "fp32"}
    if training.precision == "fp16":  # dynamic: 0; by two, down at every overflow and up after 1000 steps without one
        generated["fp16"] |= {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1}
    return {**training.deepspeed, **generated}


@dataclass
class FullState:
    """World-size-free training state: fp32 weights and Adam moments by parameter name, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """``<moment>/<parameter name>``."""
    optimizer_steps: int
    """Updates: steps without those that were left out."""
    skipped: tuple[int, int] = (0, 0)
    """Steps left out for gradients that were not finite: in all, and in a row up to now."""
    scaler: dict[str, float] | None = None
    """fp16: the loss scale, and what decides when it changes."""


class Partitions:
    """The full values behind DeepSpeed's partitions, by parameter name.

    Args:
        optimizer: DeepSpeed's.
        adam: torch's, whose parameters are the masters (flat parts of them from stage 1 on).
    """

    def __init__(self, module: nn.Module, optimizer: Any, adam: torch.optim.AdamW, stage: int, rank: Rank) -> None:
        self.named = dict(module.named_parameters())
        self.optimizer, self.adam, self.stage, self.rank = optimizer, adam, stage, rank

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and moments, on rank 0 ({} elsewhere). Collective."""
        moments = {}
        for name, parameter in self.named.items():
            for key in MOMENTS:
                moment = self._full(parameter, key)
                if self.rank.is_first:
                    moments[f"{key}/{name}"] = moment.detach().to("cpu", copy=True)
        return self.weights(), moments

    def weights(self) -> dict[str, Tensor]:
        """fp32 weights on rank 0 ({} elsewhere). Collective."""
        weights = {}
        for name, parameter in self.named.items():
            weight = self._full(parameter, None)
            if self.rank.is_first:
                weights[name] = weight.detach().to("cpu", copy=True)
        return weights

    def restore(self, state: FullState) -> None:
        """Masters and moments; the 16-bit weights were cast from the same fp32 values."""
        for name, parameter in self.named.items():
            self._set(parameter, None, state.weights[name])
            for key in MOMENTS:
                self._set(parameter, key, state.moments[f"{key}/{name}"])

    def make_moments(self, steps: int) -> None:
        """Create Adam's state, which torch creates only at the first step, and link DeepSpeed's fragments to it.

        Done before the first step: DeepSpeed itself links the fragments of stages 1 and 2 after the update of the
        first parameter group, when the second group has no state yet, and its moments cannot be read any more.
        """
        if self.stage == 3:
            flat = list(self.optimizer.fp32_partitioned_groups_flat)
        else:
            flat = [p for group in self.adam.param_groups for p in group["params"]]
        for p in flat:
            step = torch.tensor(float(steps), dtype=torch.float32, device=p.device)
            self.adam.state[p] = {"step": step} | {key: torch.zeros_like(p) for key in MOMENTS}
        if self.stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _full(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if key is None:
            value = safe_get_full_fp32_param(parameter)
            return parameter.data if value is None else value
        if self.stage == 0:
            moment: Tensor = self.adam.state[parameter][key]
            return moment
        value = safe_get_full_optimizer_state(parameter, key)
        assert value is not None
        return value  # type: ignore[no-any-return]

    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.rank.device)
        if self.stage == 0:
            (parameter.data if key is None else self.adam.state[parameter][key]).copy_(value)
        elif self.stage == 3:  # its setter of full values fails where the ranks do not divide the size
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
