"""Is it the same work? Without dropout: our step's gradient, and the loss of everybody's first step, against plain fp32
autograd from the same weights. So the peers' losses are ours, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.step.bench import Bench
from benchmarks.step.ours import Precision, alone, first_bare_step, first_step, run_config
from benchmarks.step.plain import Plain, bert, our_names
from benchmarks.step.settings import Setting
from benchmarks.step.text import padded
from data_prep.corpus import Corpus
from distill_core.engine import Rank

BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 0.02}


@dataclass(frozen=True)
class Check:
    """``gradient``: |g - g'| / |g'| over all parameters (None: a peer's, not looked at); ``loss``: the relative
    difference of the step's loss."""

    setting: str
    precision: Precision
    gradient: float | None
    loss: float
    who: str = "ours"

    @property
    def bound(self) -> float:
        return BOUNDS[self.precision]

    @property
    def ok(self) -> bool:
        return (self.gradient or 0.0) <= self.bound and self.loss <= self.bound


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


def check_peer(bench: Bench, variant: str) -> Check:
    """The loss with which a peer's first step goes backward. ``bench``: of a setting without dropout.

    Raises:
        Unavailable: a package or a checkout is missing.
    """
    runner = bench.runner(variant)
    try:
        weights = {name: value.detach().cpu().clone() for name, value in runner.trained().items()}
        with losses_of_backward() as losses:
            runner.step()
    finally:
        runner.close()
    module = plain(bench.setting, bench.vocabulary, bench.teacher, weights, bench.rank.device)
    with torch.no_grad():
        loss = float(module(bench.padded[0]))
    who, precision = variant.split()
    return Check(bench.setting.name, cast(Precision, precision), None, abs(losses[0] - loss) / abs(loss), who)


@contextlib.contextmanager
def losses_of_backward() -> Iterator[list[float]]:
    """What ``Tensor.backward`` is called on, by whomever."""
    found, kept = list[float](), Tensor.backward

    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        found.append(float(self.detach()))
        kept(self, *args, **kwargs)

    Tensor.backward = backward  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Tensor.backward = kept  # type: ignore[method-assign]


def plain(
    setting: Setting, vocabulary: int, teacher: Path, weights: Mapping[str, Tensor], device: torch.device
) -> Plain:
    """The reference with ``weights`` by our names; of TinyBERT's head, which no loss reads, its own."""
    from transformers import BertForMaskedLM

    loaded = BertForMaskedLM.from_pretrained(teacher, output_hidden_states=True).to(device)
    module = Plain(setting, loaded, bert(setting.student_fields, vocabulary, seed=0)).to(device).eval()
    named = by_our_names(module)
    heads = () if setting.recipe != "tinybert" else ("student.cls.",)
    differing = sorted(name for name in named.keys() ^ weights.keys() if not name.startswith(heads))
    if differing:
        raise ValueError(f"parameters differ: {differing[:5]}")
    with torch.no_grad():
        for name in named.keys() & weights.keys():
            named[name].copy_(weights[name])
    return module


def reference(
    setting: Setting, vocabulary: int, teacher: Path, weights: dict[str, Tensor], batch: Any
) -> tuple[dict[str, Tensor], float]:
    """The gradient by our names, and the loss, of plain autograd in fp32 from ``weights``."""
    module = plain(setting, vocabulary, teacher, weights, batch.ids.device)
    named = by_our_names(module)
    loss = module(batch)
    loss.backward()
    zeros = {name: torch.zeros_like(p) for name, p in named.items()}
    gradient = {name: (zeros[name] if p.grad is None else p.grad).cpu() for name, p in named.items()}
    return gradient, float(loss.detach())


def by_our_names(module: Plain) -> dict[str, torch.nn.Parameter]:
    """The reference's parameters by the names that ours have."""
    return our_names(module.setting, module.student, module.maps)


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|g - g'| / |g'| over all parameters, summed in fp64."""
    apart = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    size = sum(float(gradient.double().square().sum()) for gradient in theirs.values())
    return float((apart / size) ** 0.5)
