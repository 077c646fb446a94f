"""A prepared sample corpus for the tests that only read."""

from __future__ import annotations

import pytest

from data_prep.config import CleanConfig, DataConfig, MaskConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare


def sample_config(**changes: object) -> DataConfig:
    config = DataConfig(
        sources=[SourceConfig(path="builtin:sample")],
        tokenizer=TokenizerConfig(vocab_size=900),
        sequences=SequenceConfig(max_length=48),
        masks=MaskConfig(views=3),
        held_out=0.1,
        workers=1,
    )
    return config.model_copy(update=changes)


@pytest.fixture(scope="session")
def sample_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(sample_config(), tmp_path_factory.mktemp("sample") / "data")


KINDS: dict[str, dict[str, object]] = {
    "lines": {"clean": CleanConfig(unit="line", min_unit_characters=11)},
    "merged": {"masks": MaskConfig(mode="dynamic", unit="token", smoothing=0.7, max_masked=5)},
    "shuffled": {"masks": MaskConfig(unit="token", views=1)},
    "packed": {"masks": MaskConfig(views=2, ngram=[0.4, 0.3, 0.2, 0.1], replace="word")},
    "next": {"masks": MaskConfig(views=2)},
    "swapped": {"masks": MaskConfig(rate=0, views=2)},
}
"""Each kind of sequences but ``documents`` (pairs in both orders), with other settings that go with some of them."""


def kind_config(name: str, vocabulary: str) -> DataConfig:
    pair_order = name if name in ("next", "swapped") else None
    own = {"pair_order": pair_order, "copies": 2} if pair_order else {}
    kind = "pairs" if pair_order else name
    sequences = SequenceConfig.model_validate({"kind": kind, "max_length": 48, **own})
    return sample_config(sequences=sequences, tokenizer=TokenizerConfig(vocab=vocabulary), **KINDS[name])


@pytest.fixture(scope="session", params=list(KINDS))
def kind_corpus(
    request: pytest.FixtureRequest, sample_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    """The sample prepared into sequences of each kind."""
    vocabulary = str(sample_corpus.tokenizer_folder / "vocab.txt")
    return prepare(kind_config(request.param, vocabulary), tmp_path_factory.mktemp(request.param) / "data")
