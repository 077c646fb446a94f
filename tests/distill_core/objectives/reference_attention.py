"""The losses on attention and relations from their formulas, in plain loops over sequences, heads, queries and keys.

Everything in fp64; nothing is shared with the package. A model is its query, key and value, each [N, A, d].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Stream = tuple[Tensor, Tensor, Tensor]


def matrix(left: Tensor, right: Tensor, start: int, length: int, head: int) -> list[list[Tensor]]:
    """left_i · right_j / sqrt(d) for the tokens i, j of one sequence."""
    d = left.shape[-1]
    return [
        [
            sum((left[start + i, head, c] * right[start + j, head, c] for c in range(d)), torch.tensor(0.0))
            / math.sqrt(d)
            for j in range(length)
        ]
        for i in range(length)
    ]


def softmax(row: list[Tensor]) -> list[Tensor]:
    top = max(x.item() for x in row)
    exponentials = [torch.exp(x - top) for x in row]
    total = sum(exponentials, torch.tensor(0.0))
    return [e / total for e in exponentials]


def over_heads(matrices: list[list[list[Tensor]]], mean: bool) -> list[list[Tensor]]:
    share = 1 / len(matrices) if mean else 1.0
    length = len(matrices[0])
    return [[share * sum((m[i][j] for m in matrices), torch.tensor(0.0)) for j in range(length)] for i in range(length)]


def per_sequence(left: Tensor, right: Tensor, lengths: list[int]) -> list[list[list[list[Tensor]]]]:
    """[sequence][head] -> the matrix."""
    out, start = [], 0
    for length in lengths:
        out.append([matrix(left, right, start, length, head) for head in range(left.shape[1])])
        start += length
    return out


def attention_scores(mine: Stream, theirs: Stream, lengths: list[int], heads: str) -> Tensor:
    return _squares(mine, theirs, lengths, heads, probabilities=False)


def attention_probs(mine: Stream, theirs: Stream, lengths: list[int], heads: str) -> Tensor:
    return _squares(mine, theirs, lengths, heads, probabilities=True)


def _squares(mine: Stream, theirs: Stream, lengths: list[int], heads: str, probabilities: bool) -> Tensor:
    """Mean over heads (of one head, after joining them) and query-key pairs of the squared difference."""
    total, entries = torch.tensor(0.0), 0
    both = [per_sequence(q, k, lengths) for q, k, _ in (mine, theirs)]
    for of_mine, of_theirs in zip(*both, strict=True):
        if probabilities:
            of_mine, of_theirs = ([[softmax(row) for row in m] for m in ms] for ms in (of_mine, of_theirs))
        if heads != "each":
            of_mine, of_theirs = ([over_heads(ms, heads == "mean")] for ms in (of_mine, of_theirs))
        for a, b in zip(of_mine, of_theirs, strict=True):
            for row, other in zip(a, b, strict=True):
                for x, y in zip(row, other, strict=True):
                    total = total + (x - y) ** 2
                    entries += 1
    return total / entries


def attention_ce(mine: Stream, theirs: Stream, lengths: list[int], heads: str) -> Tensor:
    return _divergence(mine[:2], theirs[:2], lengths, heads, entropy=True)


def _divergence(mine: Any, theirs: Any, lengths: list[int], heads: str, entropy: bool) -> Tensor:
    """Mean over heads and queries of - sum_j p_T log p_S, and without the teacher's entropy if so asked."""
    total, rows = torch.tensor(0.0), 0
    both = [per_sequence(left, right, lengths) for left, right in (mine, theirs)]
    for of_mine, of_theirs in zip(*both, strict=True):
        if heads != "each":
            of_mine, of_theirs = ([over_heads(ms, heads == "mean")] for ms in (of_mine, of_theirs))
        for a, b in zip(of_mine, of_theirs, strict=True):
            for row, other in zip(a, b, strict=True):
                p, q = softmax(other), softmax(row)
                for x, y in zip(p, q, strict=True):
                    total = total - x * (torch.log(y) if entropy else torch.log(y) - torch.log(x))
                rows += 1
    return total / rows


def minilm(mine: Stream, theirs: Stream, lengths: list[int]) -> dict[str, Tensor]:
    return {
        "attention": _divergence(mine[:2], theirs[:2], lengths, "each", entropy=False),
        "values": _divergence((mine[2], mine[2]), (theirs[2], theirs[2]), lengths, "each", entropy=False),
    }


def recut(x: Tensor, heads: int) -> Tensor:
    """[N, A, d] -> [N, heads, A d / heads]: number c of a token's vector goes to piece c // width, place c % width."""
    tokens, old, d = x.shape
    width = old * d // heads
    pieces = [
        [[x[n, (h * width + c) // d, (h * width + c) % d] for c in range(width)] for h in range(heads)]
        for n in range(tokens)
    ]
    return torch.stack([torch.stack([torch.stack(piece) for piece in token]) for token in pieces])


def minilmv2(mine: Stream, theirs: Stream, lengths: list[int], relation_heads: int) -> dict[str, Tensor]:
    out = {}
    for name, x, y in zip(("query", "key", "value"), mine, theirs, strict=True):
        x, y = recut(x, relation_heads), recut(y, relation_heads)
        out[name] = _divergence((x, x), (y, y), lengths, "each", entropy=False)
    return out
