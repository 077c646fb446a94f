"""The losses on hidden states and logits from their formulas, in plain loops in fp64; nothing shared with the package.

Hidden states are [N, H] over the tokens of all sequences one after another, ``lengths`` says how many each has.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

Map = tuple[Tensor, Tensor, str]
"""Weight [out, in], bias [out], function."""


def total(values: list[Tensor]) -> Tensor:
    out = torch.tensor(0.0, dtype=torch.float64)
    for value in values:
        out = out + value
    return out


def project(hidden: Tensor, how: Map | None) -> Tensor:
    if how is None:
        return hidden
    weight, bias, function = how
    rows = []
    for row in hidden:
        values = [total([w * x for w, x in zip(ws, row, strict=True)]) + b for ws, b in zip(weight, bias, strict=True)]
        if function == "relu":
            values = [value if value > 0 else 0 * value for value in values]
        elif function == "tanh":
            values = [torch.tanh(value) for value in values]
        rows.append(torch.stack(values))
    return torch.stack(rows)


def spans(lengths: list[int]) -> list[range]:
    out, start = [], 0
    for length in lengths:
        out.append(range(start, start + length))
        start += length
    return out


def square(a: Tensor, b: Tensor) -> Tensor:
    return total([(x - y) * (x - y) for x, y in zip(a, b, strict=True)])


def hidden_mse(mine: Tensor, theirs: Tensor, lengths: list[int]) -> Tensor:
    return total([square(a, b) for a, b in zip(mine, theirs, strict=True)]) / theirs.numel()


def norm(row: Tensor) -> Tensor:
    return torch.sqrt(total([x * x for x in row]))


def hidden_cosine(mine: Tensor, theirs: Tensor, lengths: list[int]) -> Tensor:
    values = []
    for a, b in zip(mine, theirs, strict=True):
        product = total([x * y for x, y in zip(a, b, strict=True)])
        values.append(1 - product / (norm(a) * norm(b)))
    return total(values) / len(mine)


def pkd(mine: Tensor, theirs: Tensor, lengths: list[int]) -> Tensor:
    values = []
    for span in spans(lengths):
        a, b = mine[span[0]], theirs[span[0]]
        values.append(square(a / norm(a), b / norm(b)))
    return total(values) / len(lengths)


def nst(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
    values = []
    for span in spans(lengths):
        for p in span:
            for q in span:
                entry = [total([x * y for x, y in zip(a[p], b[q], strict=True)]) / len(b[q]) for a, b in (mine, theirs)]
                values.append((entry[0] - entry[1]) ** 2)
    return total(values) / len(values)


def fsp(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
    width, values = mine[0].shape[1], []
    for span in spans(lengths):
        for p in range(width):
            for q in range(width):
                entry = [total([a[n, p] * b[n, q] for n in span]) / len(span) for a, b in (mine, theirs)]
                values.append((entry[0] - entry[1]) ** 2 / width**2)
    return total(values) / len(lengths)


def emd(mine: list[Tensor], theirs: list[Tensor], lengths: list[int]) -> Tensor:
    """The transport as a linear program, each sequence for itself."""
    sums = []
    for span in spans(lengths):
        cost = [[total([square(a[n], b[n]) for n in span]) / theirs[0].shape[1] for b in theirs] for a in mine]
        flow = cheapest([[value.item() for value in row] for row in cost])
        sums += [flow[s][t] * cost[s][t] for s in range(len(mine)) for t in range(len(theirs))]
    return total(sums) / sum(lengths)


def cheapest(cost: list[list[float]]) -> list[list[float]]:
    students, teachers = len(cost), len(cost[0])
    constraints, wanted = [], []
    for s in range(students):
        constraints.append([float(k // teachers == s) for k in range(students * teachers)])
        wanted.append(1 / students)
    for t in range(teachers):
        constraints.append([float(k % teachers == t) for k in range(students * teachers)])
        wanted.append(1 / teachers)
    solved = linprog(np.ravel(cost), A_eq=constraints, b_eq=wanted, method="highs")
    assert solved.success
    flows: list[list[float]] = solved.x.reshape(students, teachers).tolist()
    return flows


# ---------------------------------------------------------------- logits


def log_softmax(row: Tensor) -> list[Tensor]:
    top = max(x.item() for x in row)
    log_sum = torch.log(total([torch.exp(x - top) for x in row]))
    return [x - top - log_sum for x in row]


def kd_ce(mine: Tensor, theirs: Tensor, temperatures: list[float]) -> list[Tensor]:
    """Of each row, without T²."""
    out = []
    for a, b, t in zip(mine, theirs, temperatures, strict=True):
        p, q = log_softmax(b / t), log_softmax(a / t)
        out.append(-total([torch.exp(x) * y for x, y in zip(p, q, strict=True)]))
    return out


def kd_kl(mine: Tensor, theirs: Tensor, temperatures: list[float]) -> list[Tensor]:
    out = []
    for a, b, t in zip(mine, theirs, temperatures, strict=True):
        p, q = log_softmax(b / t), log_softmax(a / t)
        out.append(total([torch.exp(x) * (x - y) for x, y in zip(p, q, strict=True)]))
    return out


def kd_mse(mine: Tensor, theirs: Tensor, temperatures: list[float]) -> list[Tensor]:
    return [square(a, b) / t**2 / len(a) for a, b, t in zip(mine, theirs, temperatures, strict=True)]


def shifted(theirs: Tensor, gold: list[int | None]) -> Tensor:
    rows = [row.tolist() for row in theirs]
    for row, label in zip(rows, gold, strict=True):
        if label is not None:
            top = max(range(len(row)), key=lambda v: row[v])
            row[top], row[label] = row[label], row[top]
    return torch.tensor(rows, dtype=torch.float64).reshape(theirs.shape)


def fair(theirs: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    rows = [row.tolist() for row in theirs]
    for row in rows:
        for a, b in pairs:
            row[a] = row[b] = (row[a] + row[b]) / 2
    return torch.tensor(rows, dtype=torch.float64).reshape(theirs.shape)


def flsw(mine: Tensor, theirs: Tensor, gamma: float) -> list[float]:
    out = []
    for a, b in zip(mine.tolist(), theirs.tolist(), strict=True):
        length = (math.sqrt(sum(x * x for x in a)) + 1e-4) * (math.sqrt(sum(x * x for x in b)) + 1e-4)
        out.append((1 - sum(x * y for x, y in zip(a, b, strict=True)) / length) ** gamma)
    return out


def cwsm(mine: Tensor) -> list[float]:
    out = []
    for row in mine.tolist():
        exponentials = [math.exp(x - max(row)) for x in row]
        out.append(1 / (max(exponentials) / sum(exponentials) + 1e-3))
    return out


def temperatures(weights: list[float], sequence: list[int], base: float, beta: float) -> list[float]:
    out = []
    for weight, number in zip(weights, sequence, strict=True):
        same = [w for w, n in zip(weights, sequence, strict=True) if n == number]
        out.append(max(base / 10, base + beta * (sum(same) / len(same) - weight)))
    return out
