"""Is it the same work? Our step's gradient, and the peers', against plain fp32 autograd without dropout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.step.ours import Precision, alone, first_bare_step, first_step, run_config
from benchmarks.step.plain import Plain, bert
from benchmarks.step.settings import Setting
from benchmarks.step.text import padded
from data_prep.corpus import Corpus
from distill_core.engine import Rank

BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 0.02}


@dataclass(frozen=True)
class Check:
    """``gradient``: |g - g'| / |g'| over all parameters; ``loss``: the relative difference of the step's loss."""

    setting: str
    precision: Precision
    gradient: float
    loss: float

    @property
    def bound(self) -> float:
        return BOUNDS[self.precision]

    @property
    def ok(self) -> bool:
        return self.gradient <= self.bound and self.loss <= self.bound


def check(setting: Setting, corpus: Corpus, teacher: Path, folder: Path, rank: Rank, precision: Precision) -> Check:
    """One step of the real loop (without DeepSpeed: of the bare one) against the reference, from the same weights."""
    still = setting.without_dropout()
    optimizer = {"gradient_clipping": 0.0, "learning_rate": 1e-6}
    config = run_config(still, corpus, teacher, folder, precision, optimizer=optimizer)
    mine = (first_step if alone.engine is None else first_bare_step)(config, corpus, rank)
    if len(mine.batches) != 1:
        raise ValueError(f"{setting.name}: the reference takes one micro-batch, and this step has {len(mine.batches)}")
    batch = padded(mine.batches[0], setting.length, corpus.special_ids["pad"]).to(rank.device)
    theirs, loss = reference(still, corpus.vocab_size, teacher, mine.weights, batch)
    return Check(setting.name, precision, distance(mine.gradient, theirs), abs(mine.loss - loss) / abs(loss))


def reference(
    setting: Setting, vocabulary: int, teacher: Path, weights: dict[str, Tensor], batch: Any
) -> tuple[dict[str, Tensor], float]:
    """The gradient by our names, and the loss, of plain autograd in fp32 from ``weights``."""
    from transformers import BertForMaskedLM

    loaded = BertForMaskedLM.from_pretrained(teacher, output_hidden_states=True).to(batch.ids.device)
    module = Plain(setting, loaded, bert(setting.student_fields, vocabulary, seed=0)).to(batch.ids.device)
    named = by_our_names(module)
    if named.keys() != weights.keys():
        raise ValueError(f"parameters differ: {sorted(named.keys() ^ weights.keys())[:5]}")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    loss = module(batch)
    loss.backward()
    zeros = {name: torch.zeros_like(p) for name, p in named.items()}
    gradient = {name: (zeros[name] if p.grad is None else p.grad).cpu() for name, p in named.items()}
    return gradient, float(loss.detach())


def by_our_names(module: Plain) -> dict[str, torch.nn.Parameter]:
    """The reference's parameters by the names that ours have."""
    named = {f"student.{name}": parameter for name, parameter in module.student.named_parameters()}
    place = next((i for i, term in enumerate(module.setting.objective) if term["kind"] == "hidden_mse"), 0)
    for number, linear in enumerate(module.maps):
        prefix = f"objectives.0.terms.{place}.project.maps.{number}.0"
        named |= {f"{prefix}.{name}": parameter for name, parameter in linear.named_parameters()}
    return named


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|g - g'| / |g'| over all parameters, summed in fp64."""
    apart = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    size = sum(float(gradient.double().square().sum()) for gradient in theirs.values())
    return float((apart / size) ** 0.5)
