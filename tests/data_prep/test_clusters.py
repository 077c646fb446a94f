from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.clusters import EXAMPLES, MEMBERS, Clusters
from data_prep.external import pairs_of_equal_keys

SLOW_DISK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW_DISK
@given(st.lists(st.integers(0, 12), max_size=200), st.integers(1, 9), st.integers(1, 40))
def test_pairs_of_equal_keys(tmp_path: Path, keys: list[int], piece: int, run: int) -> None:
    """For every size of pieces and runs: each record with the first and the latest of its key before it."""
    expected = []
    seen: dict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        expected += [(number, other) for other in dict.fromkeys([seen[key][0], seen[key][-1]])] if seen[key] else []
        seen[key].append(number)
    numbers = np.arange(len(keys), dtype=np.int64)
    spread = np.array([key * 0x9E3779B97F4A7C15 % 2**64 for key in keys], np.uint64)
    pieces = ((spread[i : i + piece], numbers[i : i + piece]) for i in range(0, len(keys), piece))
    found = [tuple(pair) for pairs in pairs_of_equal_keys(pieces, tmp_path, 48 * run) for pair in pairs.tolist()]
    assert sorted(found) == sorted(expected)
    assert not list(tmp_path.iterdir())


def test_more_pairs_than_one_answer_holds(tmp_path: Path) -> None:
    n = 100_000
    records = [(np.zeros(n, np.uint64), np.arange(n, dtype=np.int64))]
    pairs = np.concatenate(list(pairs_of_equal_keys(records, tmp_path, 1 << 20)))
    assert len(pairs) == 2 * n - 3 and (pairs[:, 0] > pairs[:, 1]).all()


@SLOW_DISK
@given(st.integers(0, 60), st.data())
def test_clusters_are_the_connected_components(tmp_path: Path, n: int, data: st.DataObject) -> None:
    place = st.integers(0, max(n - 1, 0))
    pairs = data.draw(st.lists(st.tuples(place, place), max_size=40 if n else 0))
    first, second = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    clusters = Clusters(tmp_path, n)
    expected = np.zeros(n, np.uint8)
    edges: list[tuple[int, int]] = []
    for code, some in ((1, first), (2, second)):
        clusters.unite(np.array(some, np.int64).reshape(-1, 2))
        clusters.drop(code)
        edges += some
        for component in components_of(n, edges):
            for i in component[1:]:
                expected[i] = expected[i] or code
    assert np.array_equal(clusters.dropped, expected)
    components = [c for c in components_of(n, edges) if len(c) > 1]
    number, largest, chosen = clusters.examples()
    assert (number, largest) == (len(components), max(map(len, components), default=0))
    by_first = {c[0]: c for c in components}
    assert min(EXAMPLES, len(components)) <= len(chosen) <= 2 * EXAMPLES
    for cluster in chosen:
        whole = by_first[cluster.members[0]]
        assert cluster.size == len(whole) and cluster.members == whole[:MEMBERS]
    clusters.close()
    assert (tmp_path / "dropped.bin").read_bytes() == expected.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["dropped.bin"]


def components_of(n: int, edges: list[tuple[int, int]]) -> list[list[int]]:
    """Connected components, each ascending, by an independent library."""
    rows, columns = ([edge[side] for edge in edges] for side in (0, 1))
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(n, n))
    labels = connected_components(graph, directed=False)[1] if n else np.zeros(0)
    return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]


def test_who_is_apart(tmp_path: Path) -> None:
    clusters = Clusters(tmp_path, 4)
    clusters.unite(np.array([[2, 1], [1, 0]]))
    assert clusters.apart(np.array([[0, 2], [0, 3]])).tolist() == [False, True]


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_find(tmp_path: Path, n: int) -> None:
    clusters = Clusters(tmp_path, n)
    clusters.drop(1)
    assert clusters.examples() == (0, 0, [])
