"""RefBERT's argument on a linear-Gaussian model, where every information is a logarithm of determinants.

T: the teacher's representation, X: what the student sees, R: the reference's representation.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
NX, NR, NT = 3, 2, 4


def covariance(seed: int, uses_reference: bool) -> Matrix:
    """Of (X, R, T) with T = A X + B R + noise; without ``uses_reference`` B = 0, so that R adds nothing to X."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(NX + NR, NX + NR))
    inputs = root @ root.T + np.eye(NX + NR)
    weights = generator.normal(size=(NT, NX + NR))
    if not uses_reference:
        weights[:, NX:] = 0
    noise = np.diag(generator.uniform(0.5, 1.5, NT))
    cross = inputs @ weights.T
    return np.block([[inputs, cross], [cross.T, weights @ inputs @ weights.T + noise]])


X, R, T = (list(range(NX)), list(range(NX, NX + NR)), list(range(NX + NR, NX + NR + NT)))


def entropy(c: Matrix, part: list[int]) -> float:
    """Differential, in nats."""
    return 0.5 * float(np.linalg.slogdet(2 * np.pi * np.e * c[np.ix_(part, part)])[1])


def information(c: Matrix, a: list[int], b: list[int]) -> float:
    return entropy(c, a) + entropy(c, b) - entropy(c, a + b)


def conditional(c: Matrix, a: list[int], b: list[int], given: list[int]) -> float:
    """I(a; b | given) from the covariance of a and b when ``given`` is known (Schur complement)."""
    both = a + b
    inner = np.linalg.solve(c[np.ix_(given, given)], c[np.ix_(given, both)])
    rest = c[np.ix_(both, both)] - c[np.ix_(both, given)] @ inner
    return information(rest, list(range(len(a))), list(range(len(a), len(both))))


@pytest.mark.parametrize("seed", range(8))
def test_a_reference_never_takes_information_away(seed: int) -> None:
    c = covariance(seed, uses_reference=True)
    with_reference, without = information(c, T, X + R), information(c, T, X)
    assert with_reference == pytest.approx(without + conditional(c, T, R, X), abs=1e-9)
    assert with_reference > without + 1e-3
    blind = covariance(seed, uses_reference=False)  # R and T depend on one another, but not given X
    assert information(blind, T, R) > 1e-3
    assert information(blind, T, X + R) == pytest.approx(information(blind, T, X), abs=1e-9)


def bound(c: Matrix, seen: list[int], map_: Matrix, residual: Matrix) -> float:
    """Barber & Agakov (2003): H(T) + E log q(T | seen), with q = N(map_ seen, residual)."""
    off = np.zeros((NT, NT))  # E (T - M s)(T - M s)ᵀ
    cross = map_ @ c[np.ix_(seen, T)]
    off = c[np.ix_(T, T)] - cross - cross.T + map_ @ c[np.ix_(seen, seen)] @ map_.T
    expected = -0.5 * (np.linalg.slogdet(2 * np.pi * residual)[1] + np.trace(np.linalg.solve(residual, off)))
    return entropy(c, T) + float(expected)


def best_regression(c: Matrix, seen: list[int]) -> tuple[Matrix, Matrix]:
    """The map with the least mean squared error, and the covariance of what it leaves."""
    map_ = np.linalg.solve(c[np.ix_(seen, seen)], c[np.ix_(seen, T)]).T
    return map_, c[np.ix_(T, T)] - map_ @ c[np.ix_(seen, T)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("seen", [X, X + R], ids=["X", "X and R"])
def test_the_bound_of_a_regression_is_tight_and_never_above(seed: int, seen: list[int]) -> None:
    c = covariance(seed, uses_reference=True)
    map_, residual = best_regression(c, seen)
    truth = information(c, T, seen)
    assert bound(c, seen, map_, residual) == pytest.approx(truth, abs=1e-9)
    generator = np.random.default_rng(seed)
    for size in (0.01, 0.1, 1.0):
        other = map_ + size * generator.normal(size=map_.shape)
        assert bound(c, seen, other, residual) < truth
        assert bound(c, seen, map_, residual * (1 + size)) < truth
    # one variance for all outputs is the plain mean squared error: below, unless the residuals are alike
    plain = np.eye(NT) * np.trace(residual) / NT
    assert bound(c, seen, map_, plain) <= truth + 1e-9


def test_a_smaller_squared_error_is_a_higher_bound() -> None:
    c = covariance(3, uses_reference=True)
    map_, _ = best_regression(c, X + R)
    found = []
    for shrink in (0.0, 0.5, 0.9, 1.0):
        found.append(bound(c, X + R, shrink * map_, np.eye(NT)))
    assert found == sorted(found)


def test_estimated_from_samples_the_reference_helps_the_regression() -> None:
    """Fitted on one half, its bound on the other half: higher with R, and still below the truth (to sampling noise)."""
    c = covariance(5, uses_reference=True)
    samples = np.random.default_rng(0).multivariate_normal(np.zeros(len(c)), c, size=20_000)
    fit, check = samples[:10_000], samples[10_000:]
    bounds = {}
    for name, seen in (("X", X), ("X and R", X + R)):
        map_ = np.linalg.lstsq(fit[:, seen], fit[:, T], rcond=None)[0].T
        residual = np.cov((fit[:, T] - fit[:, seen] @ map_.T).T)
        off = check[:, T] - check[:, seen] @ map_.T
        log_q = -0.5 * (np.linalg.slogdet(2 * np.pi * residual)[1] + (off @ np.linalg.inv(residual) * off).sum(1))
        bounds[name] = entropy(c, T) + float(log_q.mean())
        assert bounds[name] == pytest.approx(information(c, T, seen), abs=0.05)
    assert bounds["X and R"] > bounds["X"] + 0.1
