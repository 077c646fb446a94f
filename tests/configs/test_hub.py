from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import hub
from configs.errors import ConfigError, DataError
from tests import hub as stand_in
from tests.hub import NAME, Hub


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in.standing_in(tmp_path / "cache", monkeypatch) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text("{}")
    return tmp_path / "files"


def test_a_name_and_its_commit() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    assert hub.split(NAME) == (NAME, None)
    assert hub.split(f"{NAME}@{commit}") == (NAME, commit)
    assert hub.name_of(f"{NAME}@{commit}") == NAME
    assert hub.name_of("teacher@home") == "teacher@home"
    for wrong in ("main", "v1", commit[:39], commit.upper(), f"{commit}0", f"{commit}\n"):
        with pytest.raises(ConfigError, match="all 40 hexadecimal digits"):
            hub.split(f"{NAME}@{wrong}")


def test_what_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "some-bert").mkdir(parents=True)
    assert all(hub.is_local(source) for source in (NAME, "./x", "../x", "/x", "~/x"))
    assert not hub.is_local("someone/other")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_is_its_newest_commit(there: Hub, folder: Path, kind: hub.Kind) -> None:
    first = there.commit(folder)
    assert hub.pin(NAME, kind, "here") == f"{NAME}@{first}"
    (folder / "config.json").write_text("{ }")
    second = there.commit(folder)
    assert hub.pin(NAME, kind, "here") == f"{NAME}@{second}" != f"{NAME}@{first}"
    asked = len(there.asked)
    assert hub.pin(f"{NAME}@{first}", kind, "here") == f"{NAME}@{first}"
    assert len(there.asked) == asked


def test_without_a_network(there: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that was fetched last, if it is still there; else what to do."""
    stand_in.offline(monkeypatch)
    with pytest.raises(DataError, match=r"key: .*`hf download someone/some-bert`"):
        hub.pin(NAME, "model", "key")
    with pytest.raises(DataError, match="`hf download someone/some-bert --repo-type dataset`"):
        hub.pin(NAME, "dataset", "key")
    place, commit = there.cache / "models--someone--some-bert", "2" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    with pytest.raises(DataError, match="could not be fetched"):
        hub.pin(NAME, "model", "key")
    (place / "snapshots" / commit).mkdir(parents=True)
    assert hub.pin(NAME, "model", "key") == f"{NAME}@{commit}"
    assert there.asked == []
