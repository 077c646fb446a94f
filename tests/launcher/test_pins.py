"""Names of the hub without a commit: resolved once, said, kept, and never silently another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertForMaskedLM

from configs.errors import ConfigError, DataError
from configs.loader import load
from data_prep.corpus import Corpus
from distill_core.config import DistillStage, RunConfig
from distill_core.stage import stage_identity
from launcher import devices, launch, pins, scheduled
from launcher.backends import BACKENDS
from launcher.runfile import open_prep, open_run
from tests import hub as stand_in
from tests.hub import NAME, Hub
from tests.launcher.conftest import write_run
from tests.launcher.test_launch import Recorder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    Recorder.jobs = []
    monkeypatch.setitem(BACKENDS._entries, "recorder", Recorder)
    monkeypatch.setattr(devices, "gpus", lambda *_, **__: 0)
    with stand_in.standing_in(tmp_path / "cache", monkeypatch) as found:
        yield found


@pytest.fixture
def run_file(hub: Hub, tmp_path: Path) -> Path:
    """A student of a model of the hub, whose vocabulary is the run's."""
    path = write_run(tmp_path)
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    tree["stages"] = [tree["stages"][1] | {"teacher": NAME, "training": tree["stages"][0]["training"]}]
    tree["data"]["tokenizer"] = {"vocab": str(tmp_path / "teacher" / "vocab.txt")}
    tree["launch"]["backend"] = "recorder"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    push(hub, tmp_path / "teacher")
    return path


def push(hub: Hub, folder: Path) -> str:
    """A new commit with other weights."""
    letters = sorted(set("今天气很好，我们去公园散步。他在北京的一所大学读书这本看了两遍河边柳树绿第回0123456789"))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(tokens), **shape)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return hub.commit(folder)


def teacher(config: RunConfig) -> str:
    stage = config.stages[0]
    assert isinstance(stage, DistillStage)
    return stage.teacher[0].source


def test_a_name_is_resolved_once(
    run_file: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.newest[NAME]
    config = open_run(str(run_file))
    assert teacher(config) == NAME
    assert launch.dry_run(config).endswith("\n\nwould start 2")  # behind what would be prepared
    assert teacher(open_run(str(run_file))) == NAME  # a dry run keeps nothing
    capsys.readouterr()
    launch.launch(config)
    said = capsys.readouterr().out
    assert f"stages.student.teacher.0.source: {NAME} names no commit" in said
    assert f"As a line of the run file: source: {NAME}@{first}" in said
    kept = load(config.folder / "config.yaml", [], RunConfig)
    assert teacher(kept) == f"{NAME}@{first}"
    assert json.loads((config.folder / "environment.json").read_text())["hub"] == {
        "models": {NAME: first},
        "datasets": {},
    }
    corpus = Corpus.open(kept.data_folder, "never")
    before = stage_identity(kept, 0, corpus)
    assert first in json.dumps(before["stage"]) and first in json.dumps(before["sources"])

    second = push(hub, tmp_path / "teacher")
    again = open_run(str(run_file))
    assert teacher(again) == f"{NAME}@{first}"
    launch.launch(again)
    assert teacher(load(config.folder / "config.yaml", [], RunConfig)) == f"{NAME}@{first}"
    assert "names no commit" not in capsys.readouterr().out
    assert stage_identity(again, 0, corpus) == before
    with monkeypatch.context() as cut:
        stand_in.offline(cut)
        launch.launch(open_run(str(run_file)))

    other = open_run(str(run_file), [f"stages.student.teacher=[{{source: {NAME}@{second}}}]"])
    assert teacher(other) == f"{NAME}@{second}"  # the user's own word
    assert stage_identity(other, 0, corpus) != before
    with pytest.raises(ConfigError, match="branches and tags move"):
        launch.launch(open_run(str(run_file), [f"stages.student.teacher=[{{source: {NAME}@main}}]"]))


def test_every_place_that_names_a_model(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = push(hub, tmp_path / "teacher")
    training = {"steps": 1, "global_batch_size": 4, "micro_batch_tokens": 64}
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    init = {"kind": "teacher_layers", "layers": [0], "source": NAME}
    (tmp_path / "here").mkdir()
    tree = {
        "name": "all",
        "output": str(tmp_path),
        "data": {"sources": [{"path": "builtin:sample"}], "sequences": {"max_length": 32}},
        "tasks": {"t": {"kind": "classification", "train": "train.tsv", "dev": "dev.tsv", "max_length": 32}},
        "stages": [
            {"kind": "pretrain", "name": "a", "init": {"kind": "model", "source": NAME}, "training": training},
            {"kind": "finetune", "name": "b", "model": NAME, "task": "t", "training": training},
            {"kind": "augment", "name": "c", "model": NAME, "task": "t"},
            {
                "kind": "distill",
                "name": "d",
                "teacher": ["a", NAME, str(tmp_path / "here")],
                "student": {"model": shape, "init": init},
                "objective": [{"kind": "kd_ce"}],
                "training": training,
            },
        ],
    }
    config = pins.settled(RunConfig.model_validate(tree))
    text = json.dumps(config.model_dump(mode="json"))
    assert text.count(f'"{NAME}@{commit}"') == 5 and f'"{NAME}"' not in text
    assert pins.record(config) == {"models": {NAME: commit}, "datasets": {}}
    assert pins.settled(config) is config
    assert capsys.readouterr().out.count("names no commit") == 1  # once for all places
    assert len([path for path in hub.asked if path.startswith("/api/models/")]) == 1


def test_data_sets_are_kept_with_the_data(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool, revision: str | None) -> Any:
        asked.append((path, revision))
        return datasets.IterableDataset.from_generator(lambda: ({"text": f"第{i}篇文章。" * 9} for i in range(60)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a")
    first = hub.commit(tmp_path / "files")
    path = write_run(tmp_path)
    words = [f"data.sources=[{{path: {NAME}, kind: datasets}}]", "data.held_out=0.2"]
    config = pins.settled(open_prep(str(path), words))
    assert config.data.sources[0].path == f"{NAME}@{first}"
    launch.prepare_data(config.data, config.data_folder)
    assert set(asked) == {(NAME, first)}
    (tmp_path / "files" / "a.txt").write_text("b")
    second = hub.commit(tmp_path / "files")
    for again in (open_prep(str(path), words), open_run(str(path), words)):
        assert again.data.sources[0].path == f"{NAME}@{first}"
    launch.prepare_data(again.data, again.data_folder)  # finds that all is done
    other = open_prep(str(path), [words[0].replace(NAME, f"{NAME}@{second}"), words[1]])
    with pytest.raises(DataError, match=second):
        launch.prepare_data(other.data, other.data_folder)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"hub": 1}', '{"hub": {"models": {"someone/some-bert": "main"}}}'])
def test_a_damaged_record_is_none(run_file: Path, damage: str) -> None:
    config = open_run(str(run_file))
    launch.write(config.folder / "environment.json", damage)
    launch.write(config.data_folder / "plan.json", damage)
    assert open_run(str(run_file)) == config


def test_without_network_and_copy(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.offline(monkeypatch)
    with pytest.raises(DataError, match=r"stages\.student\.teacher\.0\.source: .*`hf download someone/some-bert`"):
        launch.launch(open_run(str(run_file)))
    assert not Recorder.jobs


def test_ranks_that_somebody_else_started_agree(run_file: Path, hub: Hub) -> None:
    """Rank 0 finds the commit; the others wait for its word, and not for one of their own."""
    config = open_run(str(run_file))
    settled = pins.settled(config)
    launch.write(config.folder / "config.yaml", launch.loader.to_yaml(settled))
    assert not scheduled._settled_so(config)
    launch.write(config.folder / "environment.json", json.dumps({"hub": pins.record(settled)}))
    assert scheduled._settled_so(config)
