"""The teacher-output cache: what comes back against the live teacher, restarts and damage."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import DataError
from data_prep.config import MaskConfig
from data_prep.corpus import Corpus
from distill_core import cache
from distill_core.cache import Cached, TeacherCacheConfig, cache_teachers
from distill_core.cache_store import Contents, ViewStore
from distill_core.data import CorpusSource, Loader, cut
from distill_core.engine import Rank
from distill_core.evaluate import masked_lm
from distill_core.features import MASKED_LOGITS, FeatureRequest
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.objective import Teacher

RANK = Rank(0, 0, 1, torch.device("cpu"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MASKS = MaskConfig(views=2)
BLOCK, BUDGET = 640, 4096
BERT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "electra": BERT | {"family": "electra", "embedding_size": 8},
    "mobilebert": BERT | {"family": "mobilebert", "embedding_size": 8, "bottleneck": {"intra_size": 8}},
}
BOTH = FeatureRequest(hidden=frozenset({0, 2}), logits=frozenset({"masked"}))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Corpus) -> Iterator[Corpus]:
    """1910 sequences for training, 209 held out; in blocks of 640 here, so that there are three of a view."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_core.cache_store.BLOCK_SEQUENCES", BLOCK)
        yield tiny_corpus


@pytest.fixture(scope="module")
def kept_once(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    cached(root, corpus, model(corpus))
    return root


@pytest.fixture
def kept(kept_once: Path, tmp_path: Path) -> Path:
    """The complete cache of ``model(corpus)``; each test's own copy."""
    shutil.copytree(kept_once, tmp_path / "kept")
    return tmp_path / "kept"


def model(corpus: Corpus, precision: str = "fp32", family: str = "bert", request: FeatureRequest = BOTH) -> Teacher:
    torch.manual_seed(3)
    shape = {"vocab_size": corpus.vocab_size, "max_position_embeddings": 48, "initializer_range": 0.3}
    encoder = Encoder(EncoderConfig.model_validate(SHAPES[family] | shape))
    torch.nn.init.normal_(encoder.cls.predictions.bias)
    return Teacher(encoder.to(DTYPES[precision]), request)


def loader(corpus: Corpus) -> Loader:
    return Loader(CorpusSource(corpus.split("train")), 1, 64, BUDGET, 0, 1, "runs")


def cached(root: Path, corpus: Corpus, *teachers: Teacher, **given: Any) -> Cached:
    settings = TeacherCacheConfig.model_validate({k: given[k] for k in ("verify", "precision") if k in given})
    runs_in = "bf16" if next(teachers[0].parameters()).dtype == torch.bfloat16 else "fp32"
    say: Callable[[str], None] = given.get("say", lambda text: None)
    where = (root, corpus, given.get("masks", MASKS), teachers, loader(corpus), given.get("epochs", 2), runs_in)
    return cache_teachers(settings, *where, RANK, say)  # type: ignore[arg-type]


def groups(corpus: Corpus, block: int, view: int) -> Iterator[tuple[Any, Any]]:
    """The sequences that met in the writer's forward passes, and their epochs."""
    index = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(corpus.split("train"))))
    for micro in cut(corpus.split("train").lengths(index), 1, BUDGET):
        yield index[micro[0]], np.full(len(micro[0]), view)


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", SHAPES)
def test_the_same_groups_come_back_to_the_bit(corpus: Corpus, tmp_path: Path, precision: str, family: str) -> None:
    store = cached(tmp_path, corpus, model(corpus, precision, family))
    live = model(corpus, precision, family)
    for block, view in ((0, 0), (2, 1)):
        for index, epochs in groups(corpus, block, view):
            batch = store.train.batch(index, epochs + 2, "runs")  # two views: epochs 2 and 3 are views 0 and 1
            found, wanted = store.teachers[0](batch), live(batch)
            assert torch.equal(found.logits["masked"], wanted.logits["masked"])
            assert found.logits["masked"].dtype == DTYPES[precision]
            assert found.hidden.keys() == {0, 2}
            assert all(torch.equal(found.hidden[i], wanted.hidden[i]) for i in (0, 2))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.06)])
def test_other_groups_come_back_up_to_rounding(
    corpus: Corpus, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """Mixed views and blocks in one training batch; the bound is relative to the largest number."""
    store, live = cached(tmp_path, corpus, model(corpus, precision)), model(corpus, precision)
    index = np.random.default_rng(0).integers(0, len(corpus.split("train")), 60)
    batch = store.train.batch(index, np.arange(60), "runs")
    found, wanted = store.teachers[0](batch), live(batch)
    pairs = [(found.logits["masked"], wanted.logits["masked"])]
    pairs += [(found.hidden[i], wanted.hidden[i]) for i in (0, 2)]
    for a, b in pairs:
        assert (a.float() - b.float()).abs().max() <= tolerance * b.float().abs().max()


def test_bf16_kept_of_an_fp32_teacher(corpus: Corpus, tmp_path: Path) -> None:
    """The vectors are rounded, the decoder product is not."""
    store, live = cached(tmp_path, corpus, model(corpus), precision="bf16"), model(corpus)
    index, epochs = next(groups(corpus, 1, 0))
    batch = store.train.batch(index, epochs, "runs")
    assert batch.stored[0].vectors is not None and batch.stored[0].vectors.dtype == torch.bfloat16
    assert isinstance(live.encoder, Encoder)
    rows = live(batch).hidden[2][batch.at("masked")]
    vectors = live.encoder.cls.predictions.transform(rows).bfloat16().float()
    words = live.encoder.bert.embeddings.word_embeddings.weight
    expected = vectors @ words.T + live.encoder.cls.predictions.bias
    torch.testing.assert_close(store.teachers[0](batch).logits["masked"], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, live(batch).logits["masked"], atol=1e-4)


def test_only_what_is_asked_for_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    logits = model(corpus, request=MASKED_LOGITS)
    hidden = model(corpus, request=FeatureRequest(hidden=frozenset({1})))
    torch.nn.init.normal_(hidden.encoder.bert.embeddings.word_embeddings.weight)  # type: ignore[union-attr, arg-type]
    nothing = model(corpus, request=FeatureRequest())
    store = cached(tmp_path, corpus, logits, hidden, nothing, epochs=1)
    names = sorted(str(p.relative_to(tmp_path)).split("-", 3)[-1].split("/")[-1] for p in tmp_path.rglob("*.bin"))
    assert names == sorted(["vectors.bin"] * 2 + ["hidden-1.bin"] + ["rows.bin", "tokens.bin"] * 3)
    assert [v.view for v in store.train.stored[0].views] == [0]  # the second view is not met in one epoch
    batch = store.train.batch(np.array([5, 900]), np.array([0, 0]), "runs")
    found = [teacher(batch) for teacher in store.teachers]
    assert [(set(f.logits), set(f.hidden)) for f in found] == [({"masked"}, set()), (set(), {1}), (set(), set())]
    view = store.train.stored[0].views[0]
    assert (view.folder / "vectors.bin").stat().st_size == int(view.rows[-1]) * 16 * 4


def test_the_encoder_is_dropped_and_evaluation_still_works(corpus: Corpus, tmp_path: Path) -> None:
    live = model(corpus)
    layer = weakref.ref(live.encoder.bert.encoder.layer[0])  # type: ignore[union-attr, index]
    parameters = live.parameter_count
    store = cached(tmp_path, corpus, live)
    student = model(corpus, family="electra").encoder
    assert isinstance(student, Encoder)
    picked = [np.arange(20), np.arange(150, 209)]
    batches = [store.held_out.batch(index, np.zeros(len(index), np.int64), "runs") for index in picked]
    found = masked_lm.evaluate(student, store.teachers[0], batches, RANK)
    wanted = masked_lm.evaluate(student, live_again := model(corpus), batches, RANK)
    assert found.teacher is not None and wanted.teacher is not None
    assert found.teacher.loss == pytest.approx(wanted.teacher.loss, rel=1e-6)
    assert (found.agreement, found.teacher.accuracy) == (wanted.agreement, wanted.teacher.accuracy)
    assert store.teachers[0].parameter_count == parameters == live_again.parameter_count
    del live
    gc.collect()
    assert layer() is None
    kept = {name for name, _ in store.teachers[0].named_parameters()}
    assert kept == {"words.weight", "predictions.bias"}


def test_without_masks_there_is_one_view(tiny_corpus: Corpus) -> None:
    assert cache.distinct_views(MaskConfig(rate=0, mode="dynamic")) == 1
    assert cache.distinct_views(MaskConfig(views=7)) == 7
    assert cache.distinct_views(MaskConfig(mode="dynamic")) is None


# ---------------------------------------------------------------- restart and damage


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class Counted:
    """Counts the blocks that are written, and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> None:
        self.blocks: list[tuple[int, str, int]] = []
        original = ViewStore.write

        def write(store: ViewStore, block: int, arrays: dict[str, Any]) -> None:
            if len(self.blocks) == fail_at:
                raise KeyboardInterrupt
            original(store, block, arrays)
            self.blocks.append((store.view, store.split.name, block))

        monkeypatch.setattr(ViewStore, "write", write)


def interrupt(root: Path, corpus: Corpus, after: int) -> None:
    """Leave a cache as a kill after some blocks does."""
    with pytest.MonkeyPatch.context() as patch:
        Counted(patch, fail_at=after)
        with pytest.raises(KeyboardInterrupt):
            cached(root, corpus, model(corpus))


def test_an_interrupted_cache_goes_on(
    corpus: Corpus, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(tmp_path / "cut", corpus, 5)
    note = next((tmp_path / "cut").glob("train-view-1-*/blocks/000000.json"))
    note.write_text("{", encoding="utf-8")  # a note that means nothing
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        cached(tmp_path / "cut", corpus, model(corpus))
    assert counted.blocks == [(1, "train", 0), (1, "train", 2), (0, "held_out", 0)]
    assert content(tmp_path / "cut") == content(kept)


def test_a_complete_cache_is_only_read(corpus: Corpus, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, counted = content(kept), Counted(monkeypatch)
    store = cached(kept, corpus, model(corpus))
    assert counted.blocks == [] and len(store.train.stored[0].views) == 2
    assert content(kept) == before


def test_damaged_blocks_are_computed_again(corpus: Corpus, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, counted = content(kept), Counted(monkeypatch)
    view = cached(kept, corpus, model(corpus)).train.stored[0].views[1]
    flip(view.folder / "hidden-2.bin", view.stretch("hidden-2.bin", 1)[0] * 64 + 5)
    lines: list[str] = []
    cached(kept, corpus, model(corpus), verify="sizes")
    assert counted.blocks == []
    cached(kept, corpus, model(corpus), say=lines.append)
    assert counted.blocks == [(1, "train", 1)]
    assert any("1 blocks of" in line and "not what was written" in line for line in lines)
    assert content(kept) == before


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["manifest.json", "rows.bin", "size", "gone"])
def test_a_cache_that_is_not_what_was_written_is_refused(corpus: Corpus, kept: Path, damage: str) -> None:
    folder = next(kept.glob("train-view-0-*"))
    if damage == "size":
        (folder / "vectors.bin").write_bytes((folder / "vectors.bin").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "vectors.bin").unlink()
    else:
        flip(folder / damage, 30)
    with pytest.raises(DataError, match=rf"{folder.name} is damaged .* Delete that folder"):
        cached(kept, corpus, model(corpus), verify="sizes")


def test_a_file_cut_short_while_blocks_are_missing(corpus: Corpus, tmp_path: Path, kept: Path) -> None:
    """Its notes are worth nothing then, whatever is looked at."""
    interrupt(tmp_path / "cut", corpus, 2)
    path = next((tmp_path / "cut").glob("train-view-0-*/hidden-0.bin"))
    path.write_bytes(path.read_bytes()[:1000])
    cached(tmp_path / "cut", corpus, model(corpus), verify="sizes")
    assert content(tmp_path / "cut") == content(kept)


def test_what_it_depends_on_is_its_name(corpus: Corpus, tmp_path: Path) -> None:
    """Another corpus, teacher, precision or choice of outputs never reads what was kept for this one."""
    other = model(corpus)
    torch.nn.init.constant_(other.encoder.cls.predictions.bias, 0.5)  # type: ignore[union-attr, arg-type]
    split, contents = corpus.split("train"), cache.wanted_contents(other, "fp32")
    teachers = [model(corpus), other, model(corpus, "bf16")]
    facts = [{"corpus": c, "teacher": cache.fingerprint(t)} for c in ("a", "b") for t in teachers]
    others = [replace(contents, precision="bf16"), replace(contents, hidden=(0,)), replace(contents, vectors=None)]
    stores = [ViewStore(tmp_path, split, 0, contents, fact) for fact in facts]
    stores += [ViewStore(tmp_path, split, 1, contents, facts[0])]
    stores += [ViewStore(tmp_path, split, 0, given, facts[0]) for given in others]
    assert len({store.folder for store in stores}) == len(stores) == 10
    assert cache.fingerprint(model(corpus)) == facts[0]["teacher"]


def test_the_manifest_says_what_is_there(corpus: Corpus, kept_once: Path) -> None:
    facts = [json.loads(p.read_text())["facts"] for p in sorted(kept_once.glob("*/manifest.json"))]
    assert [(f["split"], f["view"]) for f in facts] == [("held_out", 0), ("train", 0), ("train", 1)]
    assert all(f["corpus"] == corpus.hash and f["runs_in"] == f["precision"] == "fp32" for f in facts)
    assert facts[1]["files"] == {"vectors.bin": 16, "hidden-0.bin": 16, "hidden-2.bin": 16}
    assert not list(kept_once.glob("*/blocks"))


def test_more_epochs_need_more_views_later(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, corpus, model(corpus), epochs=1)
    counted = Counted(monkeypatch)
    cached(tmp_path, corpus, model(corpus), epochs=5)
    assert counted.blocks == [(1, "train", b) for b in range(3)]


def test_two_teachers_of_the_same_weights_share_it(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    store = cached(tmp_path, corpus, model(corpus), model(corpus))
    assert len(counted.blocks) == 2 * 3 + 1
    batch = store.train.batch(np.array([7]), np.array([1]), "runs")
    a, b = (teacher(batch).logits["masked"] for teacher in store.teachers)
    assert torch.equal(a, b)


def test_blocks_of_long_splits_are_larger(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_core.cache_store.MOST_BLOCKS", 4)
    monkeypatch.setattr("distill_core.cache_store.BLOCK_SEQUENCES", 128)
    store = ViewStore(tmp_path, corpus.split("train"), 0, Contents(8, (), 8, "fp32"), {})
    assert (store.block_size, store.blocks, store.sequences(3)) == (478, 4, (1434, 1910))
