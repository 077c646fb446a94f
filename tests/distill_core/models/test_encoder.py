"""Hugging Face's BertForMaskedLM is the oracle: same weights, same numbers, padding or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from distill_core.features import FeatureRequest
from distill_core.models.attention import Kernel, attend, choose_kernel, layout
from distill_core.models.config import EncoderConfig, presets
from distill_core.models.encoder import ACTIVATIONS, Encoder

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


def stream(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return ids[mask], torch.arange(mask.shape[1]).expand_as(mask)[mask]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_logits_and_every_hidden_state(kernel: Kernel, activation: str) -> None:
    shape = config(hidden_act=activation)
    ours, theirs = pair(shape)
    ids, mask = padded(LENGTHS, shape.vocab_size)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        request = FeatureRequest(hidden=frozenset(range(4)), logits=True)
        n = torch.arange(sum(LENGTHS))
        found = ours.eval()(*stream(ids, mask), layout(LENGTHS, kernel), n, request)
    torch.testing.assert_close(found.logits, expected.logits[mask], atol=1e-5, rtol=0)
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
    rows = torch.arange(len(weights))
    found = ours.train()(*stream(ids, mask), layout(LENGTHS, kernel), rows, FeatureRequest(logits=True))
    (found.logits * weights).sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-5, rtol=0, msg=name)


def test_logits_only_at_the_rows_asked_for_and_in_their_order() -> None:
    shape = config()
    ours, _ = pair(shape)
    ids, mask = padded([5, 4], shape.vocab_size)
    where, rows = layout([5, 4], "runs"), torch.tensor([8, 0, 3])
    everything = ours.eval()(*stream(ids, mask), where, torch.arange(9), FeatureRequest(logits=True))
    some = ours(*stream(ids, mask), where, rows, FeatureRequest(logits=True))
    assert some.logits.shape == (3, shape.vocab_size)
    torch.testing.assert_close(some.logits, everything.logits[rows], atol=1e-6, rtol=0)


def test_only_the_layers_that_are_needed_are_run() -> None:
    ours, _ = pair(config())
    ran: list[int] = []
    for index, layer in enumerate(ours.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    ids = torch.arange(4)
    found = ours(ids, ids, layout([4], "runs"), None, FeatureRequest(hidden=frozenset({0, 1})))
    assert ran == [0]
    assert found.logits is None and sorted(found.hidden) == [0, 1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sequence_does_not_see_its_neighbours(kernel: Kernel) -> None:
    shape = config()
    ours, _ = pair(shape)
    ids, mask = padded([6, 6, 2], shape.vocab_size)
    request = FeatureRequest(hidden=frozenset({3}))
    tokens, positions = stream(ids, mask)
    with torch.no_grad():
        together = ours.eval()(tokens, positions, layout([6, 6, 2], kernel), None, request).hidden[3]
        alone = ours(tokens[6:12], positions[6:12], layout([6], kernel), None, request).hidden[3]
    torch.testing.assert_close(together[6:12], alone, atol=1e-6, rtol=0)


def test_attention_dropout_on_both_kernels() -> None:
    q = torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(0))
    for kernel in KERNELS:
        where = layout([6, 4], kernel)
        torch.manual_seed(0)
        assert not torch.equal(attend(q, q, q, where, 0.5), attend(q, q, q, where, 0.0))
        kept = attend(q, q, q, where, 0.0)
        torch.testing.assert_close(kept, attend(q, q, q, layout([6, 4], "runs")), atol=1e-6, rtol=0)


def test_kernels_by_device() -> None:
    assert choose_kernel("auto", CPU) == "runs"
    assert choose_kernel("auto", torch.device("cuda", 0)) == "padded"
    assert choose_kernel("padded", CPU) == "padded"


def test_layouts() -> None:
    assert layout([5, 5, 2, 5], "runs").runs == ((0, 2, 5), (10, 1, 2), (12, 1, 5))
    spread = layout([3, 1], "padded")
    assert spread.slots is not None and spread.slots.tolist() == [0, 1, 2, 3]
    assert spread.key_mask is not None and spread.key_mask.shape == (2, 1, 1, 3)
    bounds = layout([3, 1], "varlen").bounds
    assert bounds is not None and bounds.tolist() == [0, 3, 4] and bounds.dtype == torch.int32


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_act 'swish' is not one of gelu"):
        Encoder(config(hidden_act="swish"))


# ---------------------------------------------------------------- parameter counts

# (reported in the model cards, computed with pooler and without masked-LM head), in millions; methods.md, section 1.
PUBLISHED = {
    "roberta-wwm-ext": (102.3, 102.27),
    "bert-base-chinese": (102.3, 102.27),
    "rbt6": (59.76, 59.74),
    "rbt3": (38.5, 38.48),
    "rbt4-h312": (11.4, 11.42),
    "minirbt-h256": (10.4, 10.35),
    "minirbt-h288": (12.3, 12.31),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(presets()))
def test_counts_are_those_of_hugging_face_and_of_the_cards(name: str) -> None:
    shape = EncoderConfig.model_validate(presets()[name])
    with torch.device("meta"):
        hugging_face = BertConfig(**shape.model_dump())
        assert shape.published_parameters() == count(BertModel(hugging_face))
        assert shape.parameters() == count(BertForMaskedLM(hugging_face)) == count(Encoder(shape))
    if name in PUBLISHED:
        reported, computed = PUBLISHED[name]
        assert round(shape.published_parameters() / 1e6, 2) == computed
        # Some cards count the pooler, some the masked-LM head.
        counts = (shape.published_parameters() / 1e6, shape.parameters() / 1e6)
        assert min(abs(count - reported) for count in counts) <= 0.05


def test_the_published_rbt6_counts_its_head() -> None:
    shape = EncoderConfig.model_validate(presets()["rbt6"])
    assert round(shape.parameters() / 1e6, 2) == 59.76


def test_every_published_size_has_its_preset() -> None:
    assert PUBLISHED.keys() <= presets().keys()
