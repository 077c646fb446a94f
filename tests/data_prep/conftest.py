"""A prepared sample corpus for the tests that only read."""

from __future__ import annotations

import pytest

from data_prep.config import DataConfig, MaskConfig, SequenceConfig, SourceConfig, TokenizerConfig
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
