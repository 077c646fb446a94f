"""Sequences of a corpus that is not prepared yet: as preparation then makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.config import SourceConfig
from data_prep.corpus import Corpus
from data_prep.tokenizer import open_tokenizer
from launcher import launch
from launcher.plan_data import measure, taken_bytes
from launcher.plan_sample import sample
from launcher.runfile import open_run

RUN = """
name: sampled
output: {folder}
data:
  sources: [{{path: "builtin:sample"}}]
  clean: {{unit: {unit}}}
  segment: {{kind: none}}
  tokenizer: {{vocab: {vocab}}}
  sequences: {{kind: {kind}, max_length: 128}}
  workers: 1
stages:
  - name: teacher
    kind: pretrain
    model: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 128}}
    training: {{steps: 2, global_batch_size: 4, micro_batch_tokens: 512, precision: fp32}}
"""


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("documents", "sentence"),
        ("lines", "line"),
        ("packed", "sentence"),
        ("shuffled", "sentence"),
        ("pairs", "sentence"),
    ],
)
def test_the_estimate_is_what_preparation_makes(prepared: Path, tmp_path: Path, kind: str, unit: str) -> None:
    vocab = open_run(str(prepared)).data_folder / "tokenizer"
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(folder=tmp_path, vocab=vocab, kind=kind, unit=unit), encoding="utf-8")
    config = open_run(str(path))
    estimate = measure(config)
    assert not estimate.exact and not estimate.problems
    launch.prepare_data(config.data, config.data_folder)
    found = measure(config)
    assert found.exact and found.tokens is not None and found.sequences is not None
    assert estimate.mean_length == pytest.approx(found.mean_length, rel=0.05)
    assert estimate.pairs_per_token == pytest.approx(found.pairs_per_token, rel=0.05)
    assert estimate.tokens == pytest.approx(found.tokens, rel=0.1)
    assert estimate.sequences == pytest.approx(found.sequences, rel=0.1)


def test_lengths_are_those_of_the_split(prepared: Path) -> None:
    """All of a small one; batches of a plan are spread as they are, the longest first."""
    config = open_run(str(prepared))
    split = Corpus.open(config.data_folder).split("train")
    data = measure(config)
    assert list(data.lengths) == sorted(split.lengths(np.arange(len(split))).tolist())
    assert data.pairs_per_token == pytest.approx(sum(n * n for n in data.lengths) / sum(data.lengths))
    drawn = data.spread(10 * round(data.mean_length))
    assert len(drawn) == 10 and drawn == sorted(drawn, reverse=True)
    assert sum(drawn) == pytest.approx(10 * data.mean_length, rel=0.1)
    assert data.spread(5) == [5]


def test_without_a_tokenizer_bytes_are_counted(prepared: Path) -> None:
    config = open_run(str(prepared))
    by_bytes = sample(config.data, None, 3.0)
    ours = sample(config.data, open_tokenizer(config.data_folder / "tokenizer", config.data.tokenizer), 3.0)
    assert by_bytes is not None and ours is not None
    assert by_bytes.bytes_per_token == pytest.approx(3.0, rel=0.05)
    assert max(by_bytes.lengths) <= 32 and ours.bytes_per_token > 1


def test_weights_and_limits_of_sources() -> None:
    def taken(**settings: float) -> float:
        return taken_bytes(SourceConfig(path="x", **settings), 1e6)  # type: ignore[arg-type]

    assert taken() == 1e6
    assert taken(weight=0.3) == pytest.approx(3e5)
    assert taken(weight=2.5) == 2.5e6
    assert taken(max_megabytes=0.1, weight=2) == 2e5
