"""A narrower student from its teacher's weights: truncated SVD of the embeddings, and layers in the same basis.

With the teacher's word embeddings E [V, H], Q [H, h] spans their first h right singular vectors, so that E Q Qᵀ is
the best approximation of E of rank h (Eckart-Young). Within that span Q is turned to lie nearest to h coordinate axes
(orthogonal Procrustes), those with the largest leverage, because a LayerNorm scales coordinates: the student's
coordinate i is nearly the teacher's ``axes[i]`` and takes over its scale. At equal width Q is the identity and the
student is the teacher (its chosen layers), not just up to a rotation.

The stream x of the teacher is taken as Q x of the student:

- a map from the stream, W, becomes W Q; a map into it, W with bias b, becomes Qᵀ W and Qᵀ b;
- a LayerNorm's gamma becomes gamma[axes], its beta Qᵀ beta;
- feed-forward neurons are those with the largest |w_in| |w_out|; heads those with the largest |W_O W_V|;
- a head narrower than the teacher's is the best of its rank: truncated SVD of W_Qᵀ W_K and of W_O W_V, with scores
  rescaled for the other 1 / sqrt(head size).

How much of the teacher is left is for training to show; a LayerNorm over h coordinates is not the projection of one
over H. The design is our own; no published recipe does this (MiniRBT begins at random).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder, Predictions
from distill_core.models.layer import Layer, SelfAttention
from distill_core.models.parts import NoNorm
from distill_core.models.tables import teacher_tables

SMALLEST = 1e-12
"""Singular values below this share of the largest are 0."""


def check_narrow(student: EncoderConfig, teacher: EncoderConfig, layers: bool, who: str) -> None:
    """Raise :class:`ConfigError` when the teacher cannot be narrowed to the student.

    Args:
        layers: whether layers are to be made too, and not the embeddings only.
    """
    for model, shape in (("student", student), ("teacher", teacher)):
        if shape.bottleneck is not None or shape.word_size != shape.hidden_size:
            raise ConfigError(
                f"{who}: student.init.kind: svd is for models whose embeddings are as wide as their layers, without "
                f"bottlenecks; the {model} is of family {shape.family}. Use init: {{kind: random}}."
            )
    names = ["hidden_size"] + (["num_attention_heads", "head_size", "intermediate_size"] if layers else [])
    wider = [name for name in names if getattr(student, name) > getattr(teacher, name)]
    if wider:
        found = "; ".join(f"{name} {getattr(student, name)} against {getattr(teacher, name)}" for name in wider)
        other = " without `layers`" if layers and "hidden_size" not in wider else ""
        raise ConfigError(
            f"{who}: student.init.kind: svd makes a teacher narrower, but the student is wider in {found}. Use "
            f"{'init: {kind: svd}' + other if other else 'init: {kind: random}'}, or a smaller student."
        )


class Basis(NamedTuple):
    vectors: Tensor
    """Q: float64 [H, h], orthonormal columns."""
    axes: Tensor
    """int64 [h], the teacher's coordinates that Q lies nearest to, ascending."""


def basis_of(words: Tensor, width: int) -> Basis:
    """The span of the first ``width`` right singular vectors of ``words`` [V, H], turned to the nearest axes."""
    words = words.detach().double()
    vectors = torch.linalg.eigh(words.T @ words).eigenvectors[:, -width:]
    leverage = vectors.square().sum(1)
    axes = leverage.argsort(descending=True, stable=True)[:width].sort().values
    u, _, vt = torch.linalg.svd(vectors[axes].T)
    return Basis(vectors @ u @ vt, axes)


def narrow_teacher(student: Encoder, teacher: Encoder, layers: list[int], head: bool) -> None:
    """Give ``student`` its teacher's embeddings, and the teacher's ``layers`` (0-based; empty: none), made narrower.

    Args:
        head: the masked-LM head too.
    """
    basis = basis_of(teacher.bert.embeddings.word_embeddings.weight, student.config.hidden_size)
    with torch.no_grad():
        own = dict(student.bert.embeddings.named_parameters())
        for name, table in teacher_tables(student.config, teacher).items():
            own[name].copy_(table.double() @ basis.vectors)
        _norm(student.bert.embeddings.LayerNorm, teacher.bert.embeddings.LayerNorm, basis)
        for own_layer, number in zip(student.bert.encoder.layer if layers else (), layers, strict=True):
            _layer(own_layer, teacher.bert.encoder.layer[number], basis)
        if head:
            _head(student.cls.predictions, teacher.cls.predictions, basis)


def _head(mine: Predictions, theirs: Predictions, basis: Basis) -> None:
    q, dense = basis.vectors, theirs.transform.dense
    _linear(mine.transform.dense, q.T @ _weight(dense) @ q, q.T @ _bias(dense))
    _norm(mine.transform.LayerNorm, theirs.transform.LayerNorm, basis)
    mine.bias.copy_(theirs.bias)


def _layer(mine: nn.Module, theirs: nn.Module, basis: Basis) -> None:
    assert isinstance(mine, Layer) and isinstance(theirs, Layer)
    q = basis.vectors
    w_in, w_out = _weight(theirs.intermediate.dense) @ q, q.T @ _weight(theirs.output.dense)
    neurons = _strongest(w_in.norm(dim=1) * w_out.norm(dim=0), len(mine.intermediate.dense.weight))
    _linear(mine.intermediate.dense, w_in[neurons], _bias(theirs.intermediate.dense)[neurons])
    _linear(mine.output.dense, w_out[:, neurons], q.T @ _bias(theirs.output.dense))
    out = mine.attention.output
    context = _heads(mine.attention.self, theirs.attention.self, q.T @ _weight(theirs.attention.output.dense), q)
    _linear(out.dense, context, q.T @ _bias(theirs.attention.output.dense))
    _norm(out.LayerNorm, theirs.attention.output.LayerNorm, basis)
    _norm(mine.output.LayerNorm, theirs.output.LayerNorm, basis)


def _heads(mine: SelfAttention, theirs: SelfAttention, out: Tensor, q: Tensor) -> Tensor:
    """Fill queries, keys and values; ``out``: W_O into the narrow stream [h, H]. Returns the student's [h, h]."""

    def by_head(dense: nn.Linear) -> tuple[Tensor, Tensor]:
        return (_weight(dense) @ q).view(theirs.heads, -1, q.shape[1]), _bias(dense).view(theirs.heads, -1)

    (wq, bq), (wk, bk), (wv, bv) = by_head(theirs.query), by_head(theirs.key), by_head(theirs.value)
    wo = out.T.reshape(theirs.heads, -1, len(out))  # [heads, d, h]: each head's W_O, transposed
    size = mine.query.weight.shape[0] // mine.heads
    rows: dict[str, list[Tensor]] = {name: [] for name in ("wq", "bq", "wk", "bk", "wv", "bv", "wo")}
    scale = (size / wq.shape[1]) ** 0.25
    for head in _strongest(torch.linalg.matrix_norm(wo.mT @ wv), mine.heads).tolist():
        to_q, to_k = low_rank(wq[head], wk[head], size)
        to_o, to_v = low_rank(wo[head], wv[head], size)
        for to, name in ((to_q * scale, "q"), (to_k * scale, "k"), (to_v, "v")):
            weight, bias = {"q": (wq, bq), "k": (wk, bk), "v": (wv, bv)}[name]
            rows["w" + name].append(to @ weight[head])
            rows["b" + name].append(to @ bias[head])
        rows["wo"].append(to_o @ wo[head])
    for name, dense in (("q", mine.query), ("k", mine.key), ("v", mine.value)):
        _linear(dense, torch.cat(rows["w" + name]), torch.cat(rows["b" + name]))
    return torch.cat(rows["wo"]).T


def low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Maps L, R [rank, d] for which (L left)ᵀ (R right) is the best approximation of leftᵀ right of that rank.

    Args:
        left, right: [d, n]. With ``rank`` d both maps are the identity: nothing is to be approximated.
    """
    if rank == len(left):
        identity = torch.eye(rank, dtype=left.dtype)
        return identity, identity
    # With QR of both, the SVD is one of a [d, d] matrix: leftᵀ right = Q1 (R1 R2ᵀ) Q2ᵀ.
    q1, r1 = torch.linalg.qr(left.T)
    q2, r2 = torch.linalg.qr(right.T)
    u, s, vt = torch.linalg.svd(r1 @ r2.T)
    inverse = torch.where(s > SMALLEST * s[0].clamp(min=SMALLEST), s.rsqrt(), 0.0)[:rank, None]
    return inverse * (right @ q2 @ vt.T[:, :rank]).T, inverse * (left @ q1 @ u[:, :rank]).T


def _strongest(norms: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest, ascending; of equals the first."""
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def _weight(dense: nn.Linear) -> Tensor:
    return dense.weight.double()


def _bias(dense: nn.Linear) -> Tensor:
    return dense.bias.double()


def _linear(dense: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    dense.weight.copy_(weight)
    dense.bias.copy_(bias)


def _norm(mine: nn.LayerNorm | NoNorm, theirs: nn.LayerNorm | NoNorm, basis: Basis) -> None:
    mine.weight.copy_(theirs.weight[basis.axes])
    mine.bias.copy_(basis.vectors.T @ theirs.bias.double())
