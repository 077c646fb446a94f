"""Plain Hugging Face training with our losses, written out: all logits, padding, autograd. Peer and oracle in one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step.settings import Setting, Shape
from benchmarks.step.text import UNLABELLED, Padded
from benchmarks.step.turns import Feed, Gate, Loop


def bert(fields: dict[str, Any], vocabulary: int, seed: int) -> Any:
    """A random ``BertForMaskedLM`` that gives its hidden states."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    return BertForMaskedLM(BertConfig(vocab_size=vocabulary, output_hidden_states=True, **fields))


def saved_teacher(shape: Shape, vocabulary: int, folder: Path) -> Path:
    """A random teacher as a Hugging Face folder."""
    path = folder / f"teacher-{shape.layers}x{shape.width}"
    if not (path / "config.json").exists():
        bert(shape.fields(0.1, 0.1), vocabulary, seed=1).save_pretrained(path)
    return path


class _Scores:
    """Attention scores of each layer, from what its query and key put out."""

    def __init__(self, model: Any) -> None:
        self.found: list[dict[str, Tensor]] = []
        self.heads = model.config.num_attention_heads
        for index, layer in enumerate(model.bert.encoder.layer):
            self.found.append({})
            for name in ("query", "key"):
                part = getattr(layer.attention.self, name)
                part.register_forward_hook(lambda _m, _i, out, n=name, at=index: self.found[at].__setitem__(n, out))

    def layer(self, index: int) -> Tensor:
        """[B, heads, L, L]."""
        query, key = (
            self.found[index][name].unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key")
        )
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])


class Plain(nn.Module):
    """Student and projections against a teacher; ``forward`` gives the loss of a padded batch."""

    def __init__(self, setting: Setting, teacher: Any, student: Any) -> None:
        super().__init__()
        self.setting, self.student = setting, student
        self._teacher = [teacher.eval()]  # in a list: not one of the trained modules
        maps = {"minirbt": setting.student.layers + 1, "tinybert": 1}.get(setting.recipe, 0)
        wide, narrow = setting.teacher.width, setting.student.width
        if setting.recipe == "minirbt" and wide == narrow:
            maps = 0
        self.maps = nn.ModuleList(nn.Linear(narrow, wide) for _ in range(maps))
        self.step_between = setting.teacher.layers // setting.student.layers
        if setting.recipe == "tinybert":
            self.scores = _Scores(student)
            self._their_scores = _Scores(teacher)

    def forward(self, batch: Padded) -> Tensor:
        with torch.no_grad():
            theirs = self._teacher[0](input_ids=batch.ids, attention_mask=batch.attended)
        mine = self.student(input_ids=batch.ids, attention_mask=batch.attended)
        if self.setting.recipe == "minirbt":
            return self._kd_ce(mine.logits, theirs.logits, batch) + self._hidden(mine, theirs, batch)
        if self.setting.recipe == "tinybert":
            return self._score_mse(batch) + self._hidden(mine, theirs, batch)
        return self._distilbert(mine.logits, theirs.logits, batch)

    def _kd_ce(self, mine: Tensor, theirs: Tensor, batch: Padded) -> Tensor:
        chosen, temperature = batch.labels != UNLABELLED, 8.0
        target = F.softmax(theirs[chosen].float() / temperature, -1)
        return -(target * F.log_softmax(mine[chosen].float() / temperature, -1)).sum(-1).mean()

    def _distilbert(self, mine: Tensor, theirs: Tensor, batch: Padded) -> Tensor:
        masked = batch.labels != UNLABELLED
        chosen = masked if self.setting.recipe == "distilbert-masked" else batch.attended.bool()
        mine_log, their_log = (F.log_softmax(z[chosen].float() / 2.0, -1) for z in (mine, theirs))
        soft = F.kl_div(mine_log, their_log.exp(), reduction="batchmean") * 4.0
        return 5.0 * soft + 2.0 * F.cross_entropy(mine.flatten(0, 1).float(), batch.labels.flatten())

    def _hidden(self, mine: Any, theirs: Any, batch: Padded) -> Tensor:
        """The sum over layers of the mean over real tokens and width."""
        real, total = batch.attended.bool(), torch.zeros((), device=batch.ids.device)
        for layer, state in enumerate(mine.hidden_states):
            if self.maps:
                state = self.maps[layer if len(self.maps) > 1 else 0](state)
            target = theirs.hidden_states[layer * self.step_between]
            total = total + F.mse_loss(state[real].float(), target[real].float())
        return total

    def _score_mse(self, batch: Padded) -> Tensor:
        """The sum over layers of the mean over heads and pairs of real tokens."""
        real = batch.attended.bool()
        pairs = (real[:, :, None] & real[:, None, :])[:, None]
        total = torch.zeros((), device=batch.ids.device)
        for layer in range(self.setting.student.layers):
            target = self._their_scores.layer((layer + 1) * self.step_between - 1).float()
            apart = (self.scores.layer(layer).float() - target).square() * pairs
            total = total + apart.sum() / (pairs.sum() * apart.shape[1])
        return total


def our_names(setting: Setting, student: nn.Module, maps: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """A student's parameters, and those of its maps to the teacher's width, by the names that ours have."""
    named = {f"student.{name}": parameter for name, parameter in student.named_parameters()}
    place = next((i for i, term in enumerate(setting.objective) if term["kind"] == "hidden_mse"), 0)
    for number, linear in enumerate(maps):
        prefix = f"objectives.0.terms.{place}.project.maps.{number}.0"
        named |= {f"{prefix}.{name}": parameter for name, parameter in linear.named_parameters()}
    return named


def autocast(device: torch.device, bf16: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def plain_loop(setting: Setting, teacher: Any, student: Any, batches: list[Padded], bf16: bool) -> Loop:
    """The loop that anyone would write."""
    module = Plain(setting, teacher, student).to(batches[0].ids.device).train()
    module._teacher[0].eval()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)

    def program(gate: Gate) -> None:
        for batch in Feed(gate, batches):
            with autocast(batch.ids.device, bf16):
                loss = module(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return Loop(program, trained=lambda: our_names(setting, student, module.maps))
