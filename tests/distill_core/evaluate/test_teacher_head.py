from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.data import CorpusSource, held_out_batches
from distill_core.engine import Rank
from distill_core.evaluate.teacher_head import HeadQuality, check_head
from distill_core.features import MASKED_LOGITS
from distill_core.models.encoder import Encoder
from tests.distill_core.evaluate.reference import tiny_encoder

RANK = Rank(0, 0, 1, torch.device("cpu"))
SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 40


def repeated(seed: int, n: int = 32, length: int = 8) -> Batch:
    """Sequences of one token over and over, one place masked: the context says all, frequencies little."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, VOCAB, (n,), generator=generator)
    batch = Batch.of([[2, *[token] * length, 3] for token in tokens.tolist()])
    batch.rows = torch.arange(n) * (length + 2) + 1 + torch.randint(length, (n,), generator=generator)
    batch.labels = batch.ids[batch.rows]
    batch.ids[batch.rows] = 4
    return batch


def counts() -> np.ndarray:
    return np.bincount(np.concatenate([repeated(s).labels.numpy() for s in range(20)]), minlength=VOCAB)


def trained() -> Encoder:
    model = tiny_encoder(VOCAB)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        batch = repeated(step)
        loss = F.cross_entropy(model(batch, MASKED_LOGITS).logits["masked"], batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_a_trained_head_passes_and_a_new_head_on_its_encoder_fails() -> None:
    held = [repeated(1000), repeated(1001)]
    model = trained()
    good = check_head(model, held, counts(), SPECIALS, RANK)
    assert good.ok and good.loss < good.chance_loss and good.accuracy > good.chance_accuracy
    model.cls.apply(model._initialise)
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.normal_(std=0.5)
    bad = check_head(model, held, counts(), SPECIALS, RANK)
    assert not bad.ok and bad.loss > bad.chance_loss
    assert bad.chance_loss == good.chance_loss


def test_the_baseline_is_that_of_the_same_masked_tokens() -> None:
    held, often = [repeated(7)], counts()
    often[1] = 10**6  # [UNK] does not count
    found = check_head(tiny_encoder(VOCAB), held, often, SPECIALS, RANK)
    kept = [0 if token in SPECIALS.values() else int(count) for token, count in enumerate(often)]
    labels = held[0].labels
    assert labels is not None
    losses = [-math.log((kept[token] + 1) / (sum(kept) + VOCAB)) for token in labels.tolist()]
    assert found.chance_loss == pytest.approx(sum(losses) / len(losses), abs=1e-12)
    best = kept.index(max(kept))
    assert found.chance_accuracy == pytest.approx(sum(token == best for token in labels.tolist()) / len(losses))
    assert found.masked_tokens == 32


def test_an_untrained_teacher_on_text(tiny_corpus: Corpus) -> None:
    batches = held_out_batches(CorpusSource(tiny_corpus.split("held_out")), 20, 3, 2048, 0, 1, "runs")
    model = tiny_encoder(tiny_corpus.vocab_size)
    model.bert.embeddings.position_embeddings = torch.nn.Embedding(64, 16)
    model.train()
    found = check_head(model, batches, tiny_corpus.unigram, tiny_corpus.special_ids, RANK)
    assert not found.ok and found.loss == pytest.approx(math.log(tiny_corpus.vocab_size), rel=0.2)
    assert model.training


def test_a_broken_head_fails() -> None:
    assert not HeadQuality(float("nan"), 0.0, 5.0, 0.1, 10).ok


def test_nothing_to_judge_by() -> None:
    batch = repeated(1)
    batch.rows = batch.labels = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DataError, match="cannot be checked"):
        check_head(tiny_encoder(VOCAB), [batch], counts(), SPECIALS, RANK)


def test_the_message_says_what_to_do() -> None:
    text = HeadQuality(9.96, 0.001, 6.5, 0.04, 12345).message("big")
    for part in (
        "teacher big",
        "12,345",
        "9.960",
        "6.500",
        "roberta-wwm-ext-large",
        "`pretrain` stage",
        "warn",
    ):
        assert part in text
