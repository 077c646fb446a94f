"""The deepest layer is run only where its output is read; what comes out is what the whole layer gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features
from distill_core.models import layer
from distill_core.models.config import BottleneckConfig, EncoderConfig
from distill_core.models.encoder import Encoder

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "pooler": True,
}
SHAPES = {
    "bert": EncoderConfig(**SHAPE),
    "bottleneck": EncoderConfig(
        **SHAPE, family="mobilebert", bottleneck=BottleneckConfig(intra_size=8, feed_forwards=2)
    ),
}
ROWS = torch.tensor([8, 0, 3])


def model(name: str) -> Encoder:
    torch.manual_seed(0)
    made = Encoder(SHAPES[name])
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(rows: Tensor = ROWS) -> Batch:
    made = Batch.of([[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]], rows=rows)
    made.sampled = torch.tensor([3, 9])
    return made


def request(**fields: Any) -> FeatureRequest:
    values: dict[str, Any] = {name: frozenset(f) if isinstance(f, list) else f for name, f in fields.items()}
    return FeatureRequest(**values)


def widths(encoder: Encoder, wanted: FeatureRequest, where: Batch) -> tuple[Features, list[int]]:
    """The features, and how many rows the feed-forward network of each layer saw."""
    seen: list[int] = []
    hooks = []
    for one in encoder.bert.encoder.layer:
        assert isinstance(one.intermediate, torch.nn.Module)
        hooks.append(one.intermediate.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0]))))
    found = encoder(where, wanted)
    for hook in hooks:
        hook.remove()
    return found, seen


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"logits": ["masked"]}, 3),
        ({"logits": ["masked", "sampled"], "pooled": True}, 3 + 2 + 3),
        ({"logits": ["masked"], "heads": [3], "hidden": [1]}, 3),
        ({"logits": ["masked"], "hidden": [3]}, 10),
        ({"logits": ["all", "masked"]}, 10),
        ({"pooled": True}, 3),
    ],
)
def test_same_values_and_gradients_as_the_whole_layer(name: str, fields: dict[str, Any], rows: int) -> None:
    encoder, where = model(name), batch()
    wanted = request(**fields)
    found, seen = widths(encoder, wanted, where)
    assert seen == [10, 10, rows]
    expected = encoder(where, wanted | request(hidden=[3]))  # the whole last hidden state is asked for
    pairs = [(found.logits[kind], expected.logits[kind]) for kind in wanted.logits]
    pairs += [(found.hidden[i], expected.hidden[i]) for i in wanted.hidden]
    pairs += [(a, b) for i in wanted.heads for a, b in zip(found.heads[i], expected.heads[i], strict=True)]
    if wanted.pooled:
        assert found.pooled is not None and expected.pooled is not None
        pairs.append((found.pooled, expected.pooled))
    weights = [torch.randn_like(a) for a, _ in pairs]
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-6)
    gradients = []
    for side in (0, 1):
        total = torch.stack([(pair[side] * w).sum() for pair, w in zip(pairs, weights, strict=True)]).sum()
        gradients.append(torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True))
    for (called, _), a, b in zip(encoder.named_parameters(), *gradients, strict=True):
        assert (a is None) == (b is None), called
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5, msg=called)


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_last_layer_of_which_only_the_heads_are_wanted_attends_to_nothing(name: str) -> None:
    encoder, where = model(name), batch()
    found, seen = widths(encoder, request(heads=[2]), where)
    assert seen == [10] and not found.hidden
    expected = encoder(where, request(heads=[2], hidden=[3]))
    for a, b in zip(found.heads[2], expected.heads[2], strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_without_masked_rows_still_gives_every_parameter_a_gradient() -> None:
    encoder = model("bert")
    found = encoder(batch(torch.zeros(0, dtype=torch.int64)), request(logits=["masked"]))
    found.logits["masked"].sum().backward()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None and "pooler" not in name]
    assert missing == []


def test_a_frozen_model_takes_few_rows_at_a_time_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, where = model("bert"), batch()
    expected = encoder(where, request(hidden=[1, 3]))
    monkeypatch.setattr(layer, "FROZEN_ROWS", 4)
    with torch.no_grad():
        found, seen = widths(encoder, request(hidden=[1, 3]), where)
    assert seen == [4, 4, 2] * 3
    for index in (1, 3):
        torch.testing.assert_close(found.hidden[index], expected.hidden[index])
    _, seen = widths(encoder, request(hidden=[1, 3]), where)
    assert seen == [10] * 3  # what is trained keeps its rows together
