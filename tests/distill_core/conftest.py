"""A prepared corpus and small models for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_prep.config import DataConfig, MaskConfig, SequenceConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare
from tests.distill_core.finished import Finished, copy_finished, make_finished

# One thread, as ranks have on a CPU: sums have one order, and test workers do not compete for cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The packaged sample corpus with a small trained vocabulary; sequences of up to 48 tokens. Read only."""
    config = DataConfig(
        sources=[SourceConfig(path="builtin:sample")],
        tokenizer=TokenizerConfig(vocab_size=600),
        sequences=SequenceConfig(max_length=48),
        masks=MaskConfig(views=2),
        held_out=0.1,
        workers=1,
    )
    return prepare(config, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished_once(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return make_finished(tiny_corpus, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def finished(finished_once: Finished, tmp_path: Path) -> Finished:
    """A run folder of two finished stages with untrained models; each test's own copy."""
    return copy_finished(finished_once, tmp_path)
