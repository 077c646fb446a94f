"""Models by hub names: one commit of them, safetensors alone, from the cache where there is no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from configs.errors import ConfigError, DataError
from distill_core.models import pretrained
from distill_core.tasks.pretrained import task_kind_of
from tests import hub as stand_in
from tests.hub import NAME, Hub

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 5, "intermediate_size": 32}
PROGRAM = "raise SystemExit('this must never run')\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in.standing_in(tmp_path / "cache", monkeypatch) as found:
        yield found


def written(folder: Path, seed: int) -> BertForMaskedLM:
    """A model's folder, with a vocabulary, and with what no one should fetch."""
    torch.manual_seed(seed)
    model = BertForMaskedLM(BertConfig(**SHAPE, initializer_range=1.0))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (folder / "evil.py").write_text(PROGRAM)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return model


def words_of(source: str) -> torch.Tensor:
    return pretrained.load(source, "teacher").encoder.state_dict()["bert.embeddings.word_embeddings.weight"]


def test_a_commit_stays_what_it_is(hub: Hub, tmp_path: Path) -> None:
    first = written(tmp_path / "model", 0)
    before = hub.commit(tmp_path / "model")
    second = written(tmp_path / "model", 1)
    after = hub.commit(tmp_path / "model")
    assert before != after
    for commit, model in ((before, first), (after, second)):
        assert torch.equal(words_of(f"{NAME}@{commit}"), model.state_dict()["bert.embeddings.word_embeddings.weight"])
    folder = pretrained.folder_of(f"{NAME}@{before}", "teacher")
    fetched = {path.name for path in folder.iterdir()}
    assert fetched == {"config.json", "model.safetensors", "vocab.txt"}  # no programs, no pickles


def test_a_copy_that_is_here_needs_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "model", 0)
    source = f"{NAME}@{hub.commit(tmp_path / 'model')}"
    assert pretrained.read_config(source, "teacher", weights=False).hidden_size == 16
    assert pretrained.cached(source) is not None
    with monkeypatch.context() as cut:
        stand_in.offline(cut)
        with pytest.raises(DataError, match=r"nor whole in the cache.*`hf download someone/some-bert --revision"):
            words_of(source)  # its weights are not here yet
    expected = words_of(source)
    asked = len(hub.asked)
    assert torch.equal(words_of(source), expected)
    stand_in.offline(monkeypatch)
    assert torch.equal(words_of(source), expected)
    assert task_kind_of(source) is None
    assert len(hub.asked) == asked


def test_caches_that_other_tools_have_filled(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub's list of files, as transformers leaves them."""
    stand_in.offline(monkeypatch)
    commit = "1" * 40
    place = hub.cache / "models--someone--some-bert"
    model = written(place / "snapshots" / commit, 0)
    assert torch.equal(words_of(f"{NAME}@{commit}"), model.state_dict()["bert.embeddings.word_embeddings.weight"])
    with pytest.raises(DataError, match="could not be fetched"):
        words_of(NAME)  # for which commit does the name stand?
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    assert torch.equal(words_of(NAME), words_of(f"{NAME}@{commit}"))
    (place / "snapshots" / commit / "model.safetensors").unlink()  # the pickle is not taken in its place
    with pytest.raises(DataError, match=r"has no model\.safetensors.*pickles can hold programs"):
        words_of(NAME)


def test_weights_in_several_files(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SHAPE | {"hidden_size": 64}))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    parts = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(parts) > 1
    source = f"{NAME}@{hub.commit(tmp_path / 'model')}"
    assert torch.equal(words_of(source), model.state_dict()["bert.embeddings.word_embeddings.weight"])
    (pretrained.folder_of(source, "teacher") / parts[1].name).unlink()
    stand_in.offline(monkeypatch)
    with pytest.raises(DataError, match="nor whole in the cache"):
        words_of(source)
    other = "3" * 40  # a copy of which nobody has kept the hub's list of files
    shutil.copytree(pretrained.cached(source) or "", hub.cache / "models--someone--some-bert" / "snapshots" / other)
    with pytest.raises(DataError, match=f"has no {parts[1].name}, or it was not fetched"):
        words_of(f"{NAME}@{other}")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (f"{NAME}@main", ConfigError, "all 40 hexadecimal digits of it, and not 'main'; branches and tags move"),
        (f"{NAME}@{'A' * 40}", ConfigError, "behind @ stands a commit"),
        (f"{NAME}@{'0' * 40}", DataError, "could not be fetched from the hub"),
        ("someone/other", DataError, "neither an earlier stage, nor a local folder, nor whole in the cache"),
        ("some one/x", DataError, "neither a local folder nor a name on the hub"),
        ("a/b/c", DataError, "neither a local folder nor a name on the hub"),
    ],
)
def test_what_is_no_model_of_the_hub(
    hub: Hub, tmp_path: Path, source: str, error: type[Exception], message: str
) -> None:
    written(tmp_path / "model", 0)
    hub.commit(tmp_path / "model")
    with pytest.raises(error, match=message):
        pretrained.folder_of(source, "teacher")


def test_a_repository_that_is_no_model(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "README.md").write_text("text")
    hub.commit(tmp_path / "text")
    with pytest.raises(DataError, match=r"has no config\.json"):
        pretrained.read_config(NAME, "teacher")


def test_only_known_keys_of_a_config_are_read(tmp_path: Path) -> None:
    written(tmp_path, 0)
    facts = json.loads((tmp_path / "config.json").read_text())
    strange = {
        "_attn_implementation": "evil/kernels",
        "auto_map": {"AutoConfig": "evil.Evil"},
        "quantization_config": {"quant_method": "evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(facts | strange | {"name_or_path": "evil"}))
    made = pretrained.their_config(tmp_path, "a model", "teacher")
    assert made.hidden_size == 16
    assert not {"auto_map", "quantization_config"} & vars(made).keys()
    assert "evil" not in f"{vars(made)}"
    pretrained.load(str(tmp_path), "teacher")
