"""Hugging Face's BertForMaskedLM is the oracle: same weights, same numbers, padding or not."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models.attention import Kernel, layout
from distill_core.models.config import EncoderConfig, ModelConfig
from distill_core.models.encoder import Encoder
from distill_core.models.parts import ACTIVATIONS

KERNELS: list[Kernel] = ["runs", "padded"]
LENGTHS = [11, 7, 7, 7, 3, 1]
CPU = torch.device("cpu")


def config(**changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {
        "vocab_size": 83,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
    }
    return EncoderConfig(**(fields | changes))


def pair(shape: EncoderConfig) -> tuple[Encoder, Any]:
    """Our encoder and Hugging Face's model with the same random weights, all of them away from their defaults."""
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(**shape.model_dump()))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = Encoder(shape)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()}, strict=True)
    return ours, theirs


def padded(lengths: list[int], vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids [B, longest] with rubbish under the padding, and the mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(vocab_size, mask.shape, generator=torch.Generator().manual_seed(1)), mask


def stream(ids: Tensor, mask: Tensor, kernel: Kernel = "runs", rows: Tensor | None = None) -> Batch:
    positions = torch.arange(mask.shape[1]).expand_as(mask)[mask]
    return Batch(ids[mask], positions, layout(mask.sum(1).tolist(), kernel), rows=rows)


ALL = FeatureRequest(logits=frozenset({"all"}))
MASKED = FeatureRequest(logits=frozenset({"masked"}))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_logits_and_every_hidden_state(kernel: Kernel, activation: str) -> None:
    shape = config(hidden_act=activation)
    ours, theirs = pair(shape)
    ids, mask = padded(LENGTHS, shape.vocab_size)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        found = ours.eval()(stream(ids, mask, kernel), ALL | FeatureRequest(hidden=frozenset(range(4))))
    torch.testing.assert_close(found.logits["all"], expected.logits[mask], atol=1e-5, rtol=0)
    assert sorted(found.hidden) == [0, 1, 2, 3]
    for index, hidden in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.hidden[index], hidden[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients(kernel: Kernel) -> None:
    shape = config()
    ours, theirs = pair(shape)
    ids, mask = padded(LENGTHS, shape.vocab_size)
    weights = torch.randn(int(mask.sum()), shape.vocab_size, generator=torch.Generator().manual_seed(2)) / 100
    (theirs.train()(input_ids=ids, attention_mask=mask.long()).logits[mask] * weights).sum().backward()
    found = ours.train()(stream(ids, mask, kernel, torch.arange(len(weights))), MASKED)
    (found.logits["masked"] * weights).sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-5, rtol=0, msg=name)


def test_logits_only_at_the_rows_asked_for_and_in_their_order() -> None:
    shape = config()
    ours, _ = pair(shape)
    rows = torch.tensor([8, 0, 3])
    batch = stream(*padded([5, 4], shape.vocab_size), rows=rows)
    some = ours.eval()(batch, MASKED).logits
    assert list(some) == ["masked"] and some["masked"].shape == (3, shape.vocab_size)
    everything = ours(batch, ALL | MASKED).logits
    assert sorted(everything) == ["all", "masked"] and everything["all"].shape == (9, shape.vocab_size)
    torch.testing.assert_close(some["masked"], everything["all"][rows], atol=1e-6, rtol=0)
    torch.testing.assert_close(everything["masked"], everything["all"][rows], atol=1e-6, rtol=0)
    vectors = [ours(batch, ALL | MASKED).undecoded(kind).vectors for kind in ("masked", "all")]
    assert torch.equal(vectors[0], vectors[1][rows])


def test_only_the_layers_that_are_needed_are_run() -> None:
    ours, _ = pair(config())
    ran: list[int] = []
    for index, layer in enumerate(ours.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    found = ours(Batch.of([[0, 1, 2, 3]]), FeatureRequest(hidden=frozenset({0, 1})))
    assert ran == [0]
    assert not found.logits and sorted(found.hidden) == [0, 1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_queries_keys_and_values_are_those_of_the_layer(kernel: Kernel) -> None:
    shape = config()
    ours, theirs = pair(shape)
    ids, mask = padded(LENGTHS, shape.vocab_size)
    with torch.no_grad():
        found = ours.eval()(stream(ids, mask, kernel), FeatureRequest(heads=frozenset({2}))).heads
        below = theirs.eval()(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[1]
        attention = theirs.bert.encoder.layer[1].attention.self
        for name, value in found[2]._asdict().items():
            expected = getattr(attention, name)(below[mask]).unflatten(1, (4, 6))
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
    assert list(found) == [2]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sequence_does_not_see_its_neighbours(kernel: Kernel) -> None:
    shape = config()
    ours, _ = pair(shape)
    ids, mask = padded([6, 6, 2], shape.vocab_size)
    request = FeatureRequest(hidden=frozenset({3}))
    with torch.no_grad():
        together = ours.eval()(stream(ids, mask, kernel), request).hidden[3]
        alone = ours(stream(ids[1:2], mask[1:2], kernel), request).hidden[3]
    torch.testing.assert_close(together[6:12], alone, atol=1e-6, rtol=0)


def test_token_types() -> None:
    shape = config()
    ours, theirs = pair(shape)
    ids, mask = padded(LENGTHS, shape.vocab_size)
    types = torch.randint(2, ids.shape, generator=torch.Generator().manual_seed(3))
    batch = stream(ids, mask)
    plain = ours.eval()(batch, ALL).logits["all"]
    batch.types = types[mask]
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=types).logits[mask]
    found = ours(batch, ALL).logits["all"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, plain)


def test_a_pooler_that_is_not_there() -> None:
    ours, _ = pair(config())
    with pytest.raises(ValueError, match=r"without one; set model\.pooler: true"):
        ours(Batch.of([[1, 2]]), FeatureRequest(pooled=True))


# Taken when BERT was the only family: what a seed draws may not change, or recorded runs could not be repeated.
DRAWS = [
    (config(hidden_dropout_prob=0.1), "b411d736172f67de", 0.7034589648246765),
    (config(num_hidden_layers=1, hidden_act="relu", initializer_range=0.1), "03b98259b935194a", 0.8570079207420349),
    (ModelConfig(preset="minirbt-h256").resolve(1000), "c4d5254fdb59f94e", 0.6188064217567444),
]


@pytest.mark.parametrize(("shape", "expected", "left"), DRAWS)
def test_what_a_seed_draws_has_not_changed(shape: EncoderConfig, expected: str, left: float) -> None:
    torch.manual_seed(1234)
    found = hashlib.sha256()
    for name, value in Encoder(shape).state_dict().items():
        found.update(name.encode())
        found.update(value.numpy().tobytes())
    assert found.hexdigest()[:16] == expected
    assert torch.rand(()).item() == left
