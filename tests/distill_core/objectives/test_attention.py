"""Losses on attention: against loops from the formulas, their laws, and Hugging Face's own attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from configs.errors import ConfigError
from distill_core.batch import Batch, Count
from distill_core.features import FeatureRequest, Features, Heads
from distill_core.models.attention import Kernel
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objectives import OBJECTIVES, tiles
from distill_core.objectives.base import Term
from tests.distill_core.objectives import reference_attention as reference

LAYER = 2
PAIRS = [(LAYER, LAYER)]


def shape(heads: int, head_size: int, layers: int = LAYER) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=50,
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=8,
    )


def heads_of(seed: int, tokens: int, heads: int, head_size: int, dtype: torch.dtype = torch.float64) -> Heads:
    draw = torch.Generator().manual_seed(seed)
    return Heads(*(torch.randn(tokens, heads, head_size, generator=draw, dtype=torch.float64).to(dtype) for _ in "qkv"))


def config_of(heads: Heads) -> EncoderConfig:
    return shape(heads.query.shape[1], heads.query.shape[2])


def term(kind: str, mine: Heads, theirs: Heads, **fields: Any) -> Term:
    config = OBJECTIVES[kind].Config(**{"kind": kind, "layers": PAIRS, **fields})
    return OBJECTIVES[kind](config, config_of(mine), config_of(theirs))


def stream(lengths: list[int], kernel: Kernel = "runs") -> Batch:
    return Batch.of([[0] * length for length in lengths], kernel)


def run(loss: Term, mine: Heads, theirs: Heads, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """The means by name (without kind and layers), and the gradients of their sum for the student's q, k, v."""
    leaves = Heads(*(t.detach().clone().requires_grad_() for t in mine))
    sums = loss(Features(heads={LAYER: leaves}), Features(heads={LAYER: theirs}), batch, 0.0)
    assert list(sums) == loss.names()
    counts: dict[Count, float] = batch.counts()
    means = {
        name.partition(f"/{LAYER}-{LAYER}")[2].strip("/"): value / counts[loss.count] for name, value in sums.items()
    }
    torch.stack(list(means.values())).sum().backward()
    return {name: value.detach() for name, value in means.items()}, [leaf.grad for leaf in leaves]


def expect(
    loss: Term, mine: Heads, theirs: Heads, batch: Batch, formula: Callable[[Any, Any], dict[str, Tensor]]
) -> None:
    """Values to 1e-6 and gradients to 1e-5 of the reference's, both relative."""
    found, gradients = run(loss, mine, theirs, batch)
    leaves = [t.detach().clone().requires_grad_() for t in mine]
    wanted = formula(tuple(leaves), tuple(theirs))
    torch.stack(list(wanted.values())).sum().backward()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-12)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert (gradient is None) == (leaf.grad is None)
        if gradient is not None and leaf.grad is not None:
            error = (gradient - leaf.grad).norm()
            assert error <= 1e-5 * leaf.grad.norm() + 1e-12


lengths_of = st.lists(st.sampled_from([1, 2, 3, 4, 4, 5]), min_size=1, max_size=4)
kernels = st.sampled_from(["runs", "padded"])
FEW = settings(max_examples=25, deadline=None)


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from(
        [("attention_scores", form, heads) for form in ("auto", "gram", "direct") for heads in ("each", "mean", "sum")]
        + [("attention_probs", None, heads) for heads in ("each", "mean", "sum")]
        + [("attention_ce", None, heads) for heads in ("each", "mean")]
    ),
    lengths=lengths_of,
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=kernels,
    entries=st.sampled_from([1, 7, 40, 10**6]),
    alike=st.sampled_from([0.1, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_formula(
    case: tuple[str, str | None, str],
    lengths: list[int],
    heads: tuple[int, int],
    sizes: tuple[int, int],
    kernel: Kernel,
    entries: int,
    alike: float,
    seed: int,
) -> None:
    kind, form, how = case
    a_s, a_t = (heads[0], heads[0]) if how == "each" else heads
    mine = heads_of(seed, sum(lengths), a_s, sizes[0])
    theirs = heads_of(seed + 100, sum(lengths), a_t, sizes[1])
    fields = {"heads": how} | ({"form": form} if form else {})
    formula = getattr(reference, kind)
    with patch.object(tiles, "ENTRIES", entries), patch.object(tiles, "ALIKE", alike):
        loss = term(kind, mine, theirs, **fields)
        batch = stream(lengths, kernel)
        expect(loss, mine, theirs, batch, lambda s, t: {"": formula(s, t, lengths, how)})


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("attention_scores", {"form": "gram"}),
    ("attention_scores", {"form": "direct"}),
    ("attention_scores", {"heads": "mean"}),
    ("attention_scores", {"heads": "sum"}),
    ("attention_probs", {}),
    ("attention_probs", {"heads": "mean"}),
    ("attention_probs", {"heads": "sum"}),
    ("attention_ce", {}),
    ("attention_ce", {"heads": "mean"}),
]


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_permuting_the_heads_of_both_changes_nothing(kind: str, fields: dict[str, Any]) -> None:
    lengths, order = [6, 5, 5, 2], [2, 0, 3, 1]
    mine, theirs = heads_of(0, 18, 4, 3), heads_of(1, 18, 4, 5)
    found, gradients = run(term(kind, mine, theirs, **fields), mine, theirs, stream(lengths))
    turned = [Heads(*(t[:, order] for t in heads)) for heads in (mine, theirs)]
    again, turned_gradients = run(term(kind, *turned, **fields), *turned, stream(lengths))
    assert again[""].item() == pytest.approx(found[""].item(), rel=1e-12)
    torch.testing.assert_close(turned_gradients[0], gradients[0][:, order])  # type: ignore[index]


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_order_and_grouping_of_sequences_change_nothing(kind: str, fields: dict[str, Any]) -> None:
    lengths = [7, 7, 5, 4, 4, 1]
    mine, theirs = heads_of(0, 28, 2, 3), heads_of(1, 28, 2, 4)
    loss = term(kind, mine, theirs, **fields)
    whole, gradients = run(loss, mine, theirs, stream(lengths))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    count = stream(lengths).counts()[loss.count]
    total = 0.0
    for group in ([5, 2], [0], [4, 1, 3]):
        rows = torch.cat([torch.arange(ends[i] - lengths[i], ends[i]) for i in group])
        batch = stream([lengths[i] for i in group], "padded")
        part = [Heads(*(t[rows] for t in heads)) for heads in (mine, theirs)]
        means, part_gradients = run(loss, *part, batch)
        share = batch.counts()[loss.count] / count
        total += share * means[""].item()
        torch.testing.assert_close(part_gradients[0] * share, gradients[0][rows])  # type: ignore[operator,index]
    assert total == pytest.approx(whole[""].item(), rel=1e-12)


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_student_equal_to_teacher(kind: str, fields: dict[str, Any]) -> None:
    lengths = [40, 40, 38, 3]
    same = heads_of(3, sum(lengths), 2, 4, torch.float32)
    found, gradients = run(term(kind, same, same, **fields), same, same, stream(lengths))
    assert found[""].dtype == torch.float32
    minimum = 0.0
    if kind == "attention_ce":
        minimum = run(term(kind, same, same, **fields), same, same, stream(lengths))[0][""].item()
        entropy = entropy_of(same, lengths, fields.get("heads", "each"))
        assert minimum == pytest.approx(entropy, rel=1e-5)
    assert found[""].item() == minimum
    for gradient in gradients[:2]:
        assert gradient is not None and gradient.abs().max() < 1e-7


def entropy_of(heads: Heads, lengths: list[int], how: str) -> float:
    total, rows = 0.0, 0
    for q, k in zip(heads.query.double().split(lengths), heads.key.double().split(lengths), strict=True):
        scores = torch.einsum("iad,jad->aij", q, k) / math.sqrt(q.shape[-1])
        p = (scores.mean(0, keepdim=True) if how == "mean" else scores).softmax(-1)
        total -= float((p * p.log()).sum())
        rows += p.shape[0] * p.shape[1]
    return total / rows


# ---------------------------------------------------------------- heads: sum and mean


def test_sum_is_the_squared_head_count_times_mean_at_equal_heads() -> None:
    mine, theirs = heads_of(0, 9, 3, 4), heads_of(1, 9, 3, 4)
    for kind in ("attention_scores", "attention_probs"):
        found = {
            how: run(term(kind, mine, theirs, heads=how), mine, theirs, stream([5, 4]))[0][""]
            for how in ("sum", "mean")
        }
        assert found["sum"].item() == pytest.approx(9 * found["mean"].item(), rel=1e-12)


def test_different_head_counts_are_refused_with_advice_and_allowed_for_means() -> None:
    mine, theirs = heads_of(0, 4, 2, 4), heads_of(1, 4, 3, 4)
    for kind in ("attention_scores", "attention_probs", "attention_ce"):
        with pytest.raises(ConfigError, match=r"the student has 2 attention heads and the teacher 3. Use heads: mean"):
            term(kind, mine, theirs)
        assert run(term(kind, mine, theirs, heads="mean"), mine, theirs, stream([4]))[0][""].isfinite()


def test_layers_are_named_and_there_is_no_attention_of_the_embeddings() -> None:
    config = OBJECTIVES["attention_scores"].Config(kind="attention_scores", layers="uniform")
    loss = OBJECTIVES["attention_scores"](config, shape(2, 4, 4), shape(2, 8, 12))
    assert loss.names() == [f"attention_scores/{t}-{s}" for t, s in ((3, 1), (6, 2), (9, 3), (12, 4))]
    assert loss.needs().teacher.heads == {3, 6, 9, 12} and loss.needs().student.heads == {1, 2, 3, 4}
    with pytest.raises(ConfigError, match="names teacher layer 0"):
        term("attention_scores", heads_of(0, 1, 1, 1), heads_of(0, 1, 1, 1), layers=[(0, 1)])


# ---------------------------------------------------------------- forms and memory


def test_auto_makes_scores_only_for_short_sequences() -> None:
    mine, theirs = heads_of(0, 33, 2, 4), heads_of(1, 33, 2, 4)
    lengths = [14, 13, 12 - 6]  # 3 times the head size is 12
    seen: list[int] = []

    def watched(left: Tensor, right: Tensor, *rest: Any) -> Tensor:
        seen.append(right.shape[-2])
        return products(left, right, *rest)

    products = tiles.products
    with patch.object(tiles, "products", watched):
        found = run(term("attention_scores", mine, theirs), mine, theirs, stream(lengths))
        assert set(seen) == {6}
        seen.clear()
        run(term("attention_scores", mine, theirs, form="gram"), mine, theirs, stream(lengths))
        assert not seen
        direct = run(term("attention_scores", mine, theirs, form="direct"), mine, theirs, stream(lengths))
        assert set(seen) >= {6, 14}
    assert found[0][""].item() == pytest.approx(direct[0][""].item(), rel=1e-12)
    torch.testing.assert_close(found[1][0], direct[1][0])


def test_scores_below_minus_100_are_compared_as_they_are() -> None:
    """TinyBERT's code would set both to 0, since it takes them for padding."""
    mine, theirs = (Heads(torch.full((1, 1, 1), -q), torch.ones(1, 1, 1), torch.ones(1, 1, 1)) for q in (150.0, 120.0))
    found, _ = run(term("attention_scores", mine, theirs), mine, theirs, stream([1]))
    assert found[""].item() == 900


@pytest.mark.parametrize("kind", ["attention_scores", "attention_probs", "attention_ce", "minilm"])
def test_no_more_than_the_bounded_number_of_entries_is_kept_for_the_backward_pass(kind: str) -> None:
    lengths = [24] * 6 + [23] * 3
    fields = {"form": "direct"} if kind == "attention_scores" else {}
    mine, theirs = heads_of(0, sum(lengths), 2, 2), heads_of(1, sum(lengths), 2, 2)
    largest = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, t.numel())
        return t

    with patch.object(tiles, "ENTRIES", 600):
        leaves = Heads(*(t.clone().requires_grad_() for t in mine))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = term(kind, mine, theirs, **fields)
            loss(Features(heads={LAYER: leaves}), Features(heads={LAYER: theirs}), stream(lengths), 0.0)
        assert largest <= sum(lengths) * 4  # the streams themselves, and no matrix
    largest = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(Features(heads={LAYER: leaves}), Features(heads={LAYER: theirs}), stream(lengths), 0.0)
    assert largest >= 9 * 24 * 24  # one tile is kept as it is


def test_half_precision_features_are_compared_in_fp32() -> None:
    lengths = [9, 9, 4]
    mine, theirs = heads_of(0, 22, 2, 8, torch.bfloat16), heads_of(1, 22, 2, 8, torch.bfloat16)
    exact = [Heads(*(t.double() for t in heads)) for heads in (mine, theirs)]
    for kind, fields in VARIANTS:
        found, gradients = run(term(kind, mine, theirs, **fields), mine, theirs, stream(lengths))
        wanted, _ = run(term(kind, *exact, **fields), *exact, stream(lengths))
        assert found[""].dtype == torch.float32 and gradients[0] is not None
        assert found[""].item() == pytest.approx(wanted[""].item(), rel=2e-6)


# ---------------------------------------------------------------- Hugging Face


def hugging_face(seed: int = 0) -> tuple[Encoder, Any]:
    """Our encoder and Hugging Face's with the same random weights and eager attention."""
    config = shape(4, 6)
    torch.manual_seed(seed)
    theirs = BertForMaskedLM(BertConfig(**config.model_dump(), attn_implementation="eager")).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = Encoder(config).eval()
    state = theirs.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    return ours, theirs


@pytest.mark.parametrize("kernel", ["runs", "padded"])
def test_scores_and_probabilities_are_hugging_faces(kernel: Kernel) -> None:
    ours, theirs = hugging_face()
    lengths = [9, 9, 8, 3, 1]
    ids = torch.randint(50, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    linear: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(theirs.bert.encoder.layer):
        for name in ("query", "key"):
            hook = lambda _, __, out, at=(index + 1, name): linear.__setitem__(at, out)  # noqa: E731
            getattr(layer.attention.self, name).register_forward_hook(hook)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions
        batch = Batch.of([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)], kernel)
        heads = ours(batch, FeatureRequest(heads=frozenset({1, 2}))).heads
    for layer in (1, 2):
        factors = tiles.attention_factors(heads[layer])
        for number, length in enumerate(lengths):
            tile = tiles.Tile(number, number + 1, sum(lengths[:number]), length, length)
            left, right = (tile.spread(t, batch.layout) for t in (factors.left, factors.right))
            scores = tiles.products(left, right, factors.scale, None)[0]
            q, k = (linear[layer, name][number, :length].view(length, 4, 6) for name in ("query", "key"))
            torch.testing.assert_close(scores, torch.einsum("iad,jad->aij", q, k) / math.sqrt(6), atol=1e-5, rtol=0)
            real = expected[layer - 1][number, :, :length, :length]
            torch.testing.assert_close(scores.softmax(-1), real, atol=1e-6, rtol=0)


def test_losses_of_two_encoders_are_those_of_hugging_faces_attentions() -> None:
    """The whole way: our features and terms against the padded, eager attentions of the other two models."""
    (student, theirs_s), (teacher, theirs_t) = hugging_face(seed=0), hugging_face(seed=1)
    lengths = [8, 5, 5]
    ids = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    batch = Batch.of([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)])
    request = FeatureRequest(heads=frozenset({LAYER}))
    means = {}
    with torch.no_grad():
        p_s, p_t = (
            model(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions[LAYER - 1]
            for model in (theirs_s, theirs_t)
        )
        features = student(batch, request), teacher(batch, request)
        for kind in ("attention_probs", "attention_ce"):
            loss = OBJECTIVES[kind](OBJECTIVES[kind].Config(kind=kind, layers=PAIRS), student.config, teacher.config)
            means[kind] = loss(*features, batch, 0.0)[f"{kind}/2-2"].item() / batch.counts()[loss.count]
    both = (mask[:, :, None] & mask[:, None, :])[:, None]
    squares = ((p_s - p_t).square() * both).sum() / (4 * both.sum())
    ce = -(p_t * p_s.clamp(min=1e-30).log() * both).sum() / (4 * mask.sum())
    assert squares > 1e-3
    assert means["attention_probs"] == pytest.approx(squares.item(), rel=1e-5)
    assert means["attention_ce"] == pytest.approx(ce.item(), rel=1e-5)
