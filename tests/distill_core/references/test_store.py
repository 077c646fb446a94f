"""The store: what is written is what the teacher says, kept over crashes, and refused when it is another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from configs.errors import DataError, OutputError
from data_prep.corpus import Corpus
from distill_core.batch import Batch
from distill_core.engine import Rank
from distill_core.features import FeatureRequest
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.references import store as store_module
from distill_core.references.config import StoreDtype
from distill_core.references.store import Reader, ReferenceStore, StorePlan, make_store, quantise, store_bytes
from distill_core.references.texts import CorpusTexts

CPU = torch.device("cpu")
ALONE = Rank(0, 0, 1, CPU)
WIDTH = 16


@pytest.fixture(scope="module")
def reader(tiny_corpus: Corpus) -> Reader:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = Encoder(EncoderConfig(vocab_size=tiny_corpus.vocab_size, max_position_embeddings=48, **shape))
    return Reader(model.eval(), CPU, "runs", 512)


def plan(corpus: Corpus, max_tokens: int = 10, dtype: StoreDtype = "fp16", texts: int = 40) -> StorePlan:
    source = CorpusTexts(corpus.split("train"), documents=True)
    numbers = np.arange(0, 2 * texts, 2)
    return StorePlan.of(source, numbers, source.texts(numbers).hashes, max_tokens, dtype)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_it_holds_what_the_teacher_says(dtype: StoreDtype, tiny_corpus: Corpus, reader: Reader, tmp_path: Path) -> None:
    made = plan(tiny_corpus, dtype=dtype)
    make_store(tmp_path / "store", "key", made, reader, "abc", ALONE)
    store = ReferenceStore.open(tmp_path / "store", "abc", thorough=True)
    arrays_only = sum(p.stat().st_size for p in (tmp_path / "store").glob("*.bin"))
    assert arrays_only == store.bytes == made.bytes(WIDTH)
    assert not (tmp_path / "parts").exists()
    chosen = np.array([7, -1, 0, 7])
    found = store.references(chosen)
    at = 0
    for number, size in zip(chosen, found.lengths, strict=True):
        if number < 0:
            assert size == 0
            continue
        text = made.source.texts(made.numbers[[number]])
        hidden = reader.model(Batch.of([text.ids.tolist()]), FeatureRequest(hidden=frozenset({2}))).hidden[2].detach()
        part = slice(at, at + size)
        assert size == min(10, len(text.ids))
        assert found.ids[part].tolist() == text.ids[:size].tolist()
        assert found.positions[part].tolist() == list(range(size))
        tolerance = 2e-3 if dtype == "fp16" else float(hidden.abs().max()) / 254 + 1e-5
        torch.testing.assert_close(found.vectors[part].float(), hidden[:size], atol=tolerance, rtol=0)
        at += size
    assert found.sizes.tolist() == list(found.lengths) and len(found.ids) == at


def test_bytes_are_known_beforehand() -> None:
    assert store_bytes(0, 128, 768, "fp16") - 8 == 128 * (2 * 768 + 4)  # 196,608 bytes of vectors
    assert store_bytes(0, 128, 768, "int8") - 8 == 128 * (768 + 4 + 4)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (5, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_int8_is_off_by_half_a_scale(vectors: np.ndarray) -> None:
    numbers, scales = quantise(vectors)
    assert (np.abs(numbers * scales[:, None] - vectors) <= scales[:, None] * 0.5001).all()


def test_a_crash_keeps_the_parts_and_another_number_of_ranks_goes_on(
    tiny_corpus: Corpus, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PART", 8)
    made = plan(tiny_corpus)
    make_store(tmp_path / "whole" / "store", "key", made, reader, "abc", ALONE)

    calls: list[int] = []
    read = Reader.read

    def failing(self: Reader, *arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "read", failing)
    folder = tmp_path / "broken" / "store"
    with pytest.raises(KeyboardInterrupt):
        make_store(folder, "key", made, reader, "abc", ALONE)
    assert not folder.exists()
    # the second of two ranks makes its parts (1 and 3) first; the first one then what is left (2 and 4; 0 is there)
    parts = store_module.Parts(folder.with_name("parts"), "key", 40, 8)
    second = Rank(1, 1, 2, CPU)
    monkeypatch.setattr(Rank, "barrier", lambda self: None)
    parts.write(second, lambda first, last: store_module._part(made, reader, first, last))
    make_store(folder, "key", made, reader, "abc", Rank(0, 0, 2, CPU))
    assert len(calls) == 3 + 1 + 2  # parts 0, 1, (2 failed); 3; 2, 4
    for path in (tmp_path / "whole" / "store").glob("*.bin"):
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    before = (folder / "manifest.json").stat().st_mtime_ns
    make_store(folder, "key", made, reader, "abc", ALONE)  # there already
    assert len(calls) == 6 and (folder / "manifest.json").stat().st_mtime_ns == before
    make_store(folder, "another key", made, reader, "abd", ALONE)
    assert len(calls) == 11 and ReferenceStore.open(folder).facts["teacher"] == "abd"


def test_damage_and_other_teachers_are_refused(tiny_corpus: Corpus, reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    make_store(folder, "key", plan(tiny_corpus), reader, "abc", ALONE)
    with pytest.raises(DataError, match="another teacher"):
        ReferenceStore.open(folder, "abd")
    content = bytearray((folder / "vectors.bin").read_bytes())
    content[100] ^= 1
    (folder / "vectors.bin").write_bytes(content)
    with pytest.raises(DataError, match="does not have the content"):
        ReferenceStore.open(folder, "abc", thorough=True)
    make_store(folder, "key", plan(tiny_corpus), reader, "abc", ALONE)  # made anew
    ReferenceStore.open(folder, "abc", thorough=True)
    (folder / "vectors.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes"):
        ReferenceStore.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        ReferenceStore.open(folder)


def test_numbers_that_fit_no_half_and_a_full_disk_are_errors(
    tiny_corpus: Corpus, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "read", lambda self, texts, kept: np.full((int(kept.sum()), WIDTH), 1e6, np.float32))
    with pytest.raises(DataError, match="int8"):
        make_store(tmp_path / "store", "key", plan(tiny_corpus), reader, "abc", ALONE)
    make_store(tmp_path / "store8", "key", plan(tiny_corpus, dtype="int8"), reader, "abc", ALONE)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OutputError, match="max_tokens"):
        make_store(tmp_path / "full", "key", plan(tiny_corpus), reader, "abc", ALONE)
