"""YAML -> extends -> overrides -> typed config, and every error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from configs import loader
from configs.errors import ConfigError
from configs.loader import Config, differences, identity, load, read_tree, runtime, to_yaml, validate


class Fast(Config):
    kind: Literal["fast"]
    speed: float = 1.0


class Slow(Config):
    kind: Literal["slow"]
    patience: int = Field(default=3, ge=1)
    places: tuple[int, int] = (1, 2)


class Engine(Config):
    cylinders: int = Field(ge=1)
    oil: str = "thin"

    @model_validator(mode="after")
    def _oil_fits(self) -> Engine:
        if self.cylinders > 8 and self.oil == "thin":
            raise ValueError("more than 8 cylinders need oil: thick")
        return self


class Item(Config):
    name: str
    engine: Engine = Engine(cylinders=4)
    mode: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast(kind="fast")
    way: Literal["quick", "slowly"] | list[int] = "quick"


class Root(Config):
    name: str
    items: list[Item] = []
    engine: Engine | None = None
    rate: float = 0.5
    folder: Path | None = runtime(None)
    workers: int = runtime(1, ge=1)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def complaint(path: Path | str, *overrides: str, model: type[Config] = Root) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, overrides, model)
    assert error.value.exit_code == 64
    return str(error.value)


# ---------------------------------------------------------------- reading


def test_plain(write: Any) -> None:
    config = load(write("name: a\nrate: 1e-3\nitems:\n  - name: x\n"), [], Root)
    assert config.name == "a"
    assert config.rate == 0.001
    assert config.items[0].engine.cylinders == 4


def test_an_empty_file_is_an_empty_tree(write: Any) -> None:
    assert read_tree(write("# nothing\n")) == ({}, {})


def test_extends_merges_mappings_and_replaces_lists(write: Any) -> None:
    write("name: base\nengine: {cylinders: 6, oil: thick}\nitems: [{name: a}, {name: b}]\n", "base.yaml")
    config = load(write("extends: base.yaml\nengine: {cylinders: 12}\nitems: [{name: c}]\n"), [], Root)
    assert config.engine == Engine(cylinders=12, oil="thick")
    assert [item.name for item in config.items] == ["c"]
    assert config.name == "base"


def test_later_parents_win_and_the_file_wins_over_them(write: Any) -> None:
    write("name: one\nrate: 0.1\nworkers: 2\n", "one.yaml")
    write("name: two\nrate: 0.2\n", "two.yaml")
    config = load(write("extends: [one.yaml, two.yaml]\nrate: 0.3\n"), [], Root)
    assert (config.name, config.rate, config.workers) == ("two", 0.3, 2)


def test_extends_is_relative_to_the_file_that_says_it(write: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("name: base\n", "sub/base.yaml")
    write("extends: base.yaml\nrate: 0.7\n", "sub/middle.yaml")
    assert load(write("extends: sub/middle.yaml\n"), [], Root).rate == 0.7


def test_packaged_files_are_found_by_name() -> None:
    tree, origins = read_tree("quickstart")
    assert tree["name"] == "quickstart"
    assert origins[("name",)].endswith("quickstart.yaml:3")
    assert "name" in read_tree("recipes/minirbt-h256")[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("extends: run.yaml\n", "circle"),
        ("extends: nowhere.yaml\n", r"no run file 'nowhere.yaml' \(named by `extends` in .*run.yaml\)"),
        ("extends: 3\n", r"run.yaml:1: `extends` is the name"),
        ("extends: [{a: b}]\n", "`extends` is the name"),
        ("- a\n- b\n", "not a list"),
        ("just text\n", "not a str"),
        ("a: [1, 2\n", "not valid YAML"),
        ("name: 2024-13-45\n", "not valid YAML: month must be"),
        ("a: &x [*x]\n", "more than|too deeply"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("name: a\nrate: 1\nname: b\n", r"run.yaml:3: the key 'name' stands twice"),
        ("items:\n  - {name: a, engine: {oil: x, oil: y}}\n", r"run.yaml:2: the key 'oil' stands twice"),
        ("[" * 5000 + "]" * 5000, "too deeply"),
    ],
)
def test_files_that_cannot_be_read(write: Any, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(write(text), [], Root)


def test_a_file_that_is_not_there() -> None:
    assert "Did you mean the packaged 'quickstart'?" in complaint("quikstart")
    assert "Packaged: quickstart" in complaint("something/else.yaml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    assert "not UTF-8" in complaint(path)


def test_a_billion_laughs_are_refused(write: Any) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "more than 100,000 values" in complaint(write("\n".join(lines)))


def test_aliases_are_separate_values(write: Any) -> None:
    text = "name: a\nitems:\n  - {name: x, engine: &e {cylinders: 2}}\n  - {name: y, engine: *e}\n"
    config = load(write(text), ["items.x.engine.cylinders=5"], Root)
    assert [item.engine.cylinders for item in config.items] == [5, 2]


def test_merge_keys(write: Any) -> None:
    text = "name: a\nengine: &e {cylinders: 2}\nitems:\n  - name: x\n    engine: {<<: *e, oil: thick}\n"
    assert load(write(text), [], Root).items[0].engine == Engine(cylinders=2, oil="thick")


# ---------------------------------------------------------------- overrides

STAGES = "name: a\nitems:\n  - name: x\n  - name: y\n    engine: {cylinders: 2}\n"


@pytest.mark.parametrize("place", ["1", "y"])
def test_list_items_by_index_and_by_name(write: Any, place: str) -> None:
    config = load(write(STAGES), [f"items.{place}.engine.cylinders=3", f"items.{place}.engine.oil=thick"], Root)
    assert config.items[1].engine == Engine(cylinders=3, oil="thick")
    assert config.items[0].engine == Engine(cylinders=4)


def test_an_override_makes_the_mappings_on_its_way(write: Any) -> None:
    assert load(write("name: a\n"), ["engine.cylinders=3"], Root).engine == Engine(cylinders=3)
    assert load(write("name: a\nengine: null\n"), ["engine.cylinders=3"], Root).engine == Engine(cylinders=3)


def test_later_overrides_win(write: Any) -> None:
    assert load(write("name: a\n"), ["rate=1", "rate=2"], Root).rate == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{a: b}", {"a": "b"}),
        ("'3'", "3"),
        ("a=b", "a=b"),
        ("*.txt", "*.txt"),
        ("corpus/*.jsonl.gz", "corpus/*.jsonl.gz"),
        ("C: x: y", "C: x: y"),
        ("@home", "@home"),
        ("2024-13-45", "2024-13-45"),
        ("语料.txt", "语料.txt"),
    ],
)
def test_values_are_yaml_and_otherwise_plain_text(text: str, value: object) -> None:
    tree: dict[str, Any] = {}
    loader.apply_override(tree, {}, f"a.b={text}")
    assert tree == {"a": {"b": value}}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("rate", "not of the form a.b=value"),
        ("=3", "not of the form a.b=value"),
        ("rate=[1", "is not YAML"),
        ("items.z.name=q", r"no item 'z' \(it has x, y\)"),
        ("items.7.name=q", r"no item '7' \(it has x, y\)"),
        ("items.x.name.deeper=q", r"`items.0.name` holds a plain value, 'x'"),
    ],
)
def test_overrides_that_cannot_work(write: Any, word: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(write(STAGES), [word], Root)


def test_a_list_of_plain_values_has_no_inside() -> None:
    tree: dict[str, Any] = {"places": [1, 2]}
    with pytest.raises(ConfigError, match=r"`places\.0` holds a plain value"):
        loader.apply_override(tree, {}, "places.0.x=1")
    loader.apply_override(tree, {}, "places.0=5")
    assert tree == {"places": [5, 2]}


# ---------------------------------------------------------------- errors


def test_all_errors_at_once_with_place_value_and_reason(write: Any) -> None:
    path = write("name: a\nrates: 3\nengine:\n  cylinders: 0\nitems:\n  - name: x\n    engine: {cylinder: 2}\n")
    lines = complaint(path, "workers=many").splitlines()
    assert lines[0] == f"{path}: 5 problems in the configuration."
    text = "\n".join(lines[1:])
    assert f"- `rates` ({path}:2): there is no such key. Did you mean `rate`?" in text
    assert f"- `engine.cylinders` = 0 ({path}:4): Input should be greater than or equal to 1." in text
    assert f"- `items.0.engine.cylinder` ({path}:7): there is no such key. Did you mean `cylinders`?" in text
    assert f"- `items.0.engine.cylinders` ({path}:7): this key is required." in text
    assert "- `workers` = 'many' (override 'workers=many'): Input should be a valid integer" in text


def test_the_place_is_that_of_the_file_that_said_it(write: Any) -> None:
    base = write("name: base\nrate: high\n", "base.yaml")
    assert f"`rate` = 'high' ({base}:2)" in complaint(write("extends: base.yaml\nworkers: 2\n"))


def test_a_key_near_to_nothing_gets_the_list(write: Any) -> None:
    assert "Known: cylinders, oil." in complaint(write("name: a\nengine: {cylinders: 2, xyzzy: 1}\n"))


def test_union_tags_are_not_shown(write: Any) -> None:
    text = "name: a\nitems:\n  - name: x\n    mode:\n      kind: slow\n      patience: 0\n      patienc: 2\n"
    path = write(text)
    said = complaint(path)
    assert f"`items.0.mode.patience` = 0 ({path}:6)" in said
    assert f"`items.0.mode.patienc` ({path}:7): there is no such key. Did you mean `patience`?" in said


def test_an_unknown_name_gets_the_choices_and_the_nearest(write: Any) -> None:
    path = write("name: a\nitems:\n  - name: x\n    mode:\n      kind: fats\n    way: qwick\n")
    said = complaint(path)
    assert (
        f"- `items.0.mode.kind` = 'fats' ({path}:5): there is no such choice. Did you mean 'fast'? Known: fast," in said
    )
    assert (
        f"- `items.0.way` = 'qwick' ({path}:6): there is no such choice. Did you mean 'quick'? Known: quick, sl" in said
    )
    assert said.startswith(f"{path}: 2 problems")  # and not that `way` could be a list
    assert "Known: fast, slow." in complaint(write("name: a\nitems: [{name: x, mode: {kind: 7}}]\n"))
    said = complaint(write("name: a\nitems: [{name: x, mode: {speed: 1}}]\n"))
    assert "`items.0.mode`" in said and "the key 'kind' is required" in said


def test_a_list_is_not_told_that_it_is_no_name(write: Any) -> None:
    said = complaint(write("name: a\nitems: [{name: x, way: [1, two]}]\n"))
    assert "`items.0.way.1` = 'two'" in said and "choice" not in said
    assert "there is no such choice. Known: quick" in complaint(write("name: a\nitems: [{name: x, way: 3}]\n"))


def test_a_validator_of_our_own_speaks_plainly(write: Any) -> None:
    said = complaint(write("name: a\nengine: {cylinders: 12}\n"))
    assert said.endswith("More than 8 cylinders need oil: thick.")
    assert "Value error" not in said


def test_a_missing_key_at_the_top(write: Any) -> None:
    path = write("rate: 1\n")
    assert f"`name` ({path}): this key is required." in complaint(path)


def test_keys_that_are_not_text(write: Any) -> None:
    assert "problem" in complaint(write("name: a\n1: b\n"))


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Engine(cylinders=1).cylinders = 2  # type: ignore[misc]


# ---------------------------------------------------------------- identity, differences, writing


def test_identity_leaves_out_runtime_fields() -> None:
    first = Root(name="a", workers=1, folder=Path("x"), items=[Item(name="i")])
    second = Root(name="a", workers=9, items=[Item(name="i")])
    assert identity(first) == identity(second)
    assert "workers" not in identity(first)
    assert identity(first)["items"][0]["mode"] == {"kind": "fast", "speed": 1.0}


def test_differences_name_every_leaf() -> None:
    first = identity(Root(name="a", items=[Item(name="i"), Item(name="j")]))
    second = identity(Root(name="b", items=[Item(name="i"), Item(name="j", engine=Engine(cylinders=5))]))
    assert differences(first, second) == ["name: 'a' -> 'b'", "items.1.engine.cylinders: 4 -> 5"]
    assert differences(first, first) == []


def test_differences_of_lists_of_other_lengths_and_of_new_keys() -> None:
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a: [1] -> [1, 2]"]
    assert differences({}, {"a": {"b": 1}}) == ["a: None -> {'b': 1}"]


def test_to_yaml_reads_back_equal(write: Any) -> None:
    item = Item(name="蒸馏", mode=Slow(kind="slow", places=(3, 4)), engine=Engine(cylinders=9, oil="thick"))
    config = Root(name="yes", rate=1e-7, folder=Path("a/b"), items=[item])
    text = to_yaml(config)
    assert "蒸馏" in text
    assert load(write(text), [], Root) == config


class Ramp(Config):
    start: float = Field(ge=0)


class Heated(Config):
    heat: Annotated[float, Field(gt=0)] | Ramp


@pytest.mark.parametrize(
    ("heat", "problem"),
    [
        (-1, "`heat` = -1 (here): Input should be greater than 0."),
        ("warm", "`heat` = 'warm' (here): Input should be a valid number, unable to parse string as a number."),
        ({"start": -1}, "`heat.start` = -1 (here): Input should be greater than or equal to 0."),
        ({"begin": 1, "start": 2}, "`heat.begin` (here): there is no such key."),
    ],
)
def test_a_number_or_a_mapping_has_one_problem(heat: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate({"heat": heat}, Heated, source="here")
    assert str(error.value).startswith(f"here: 1 problem in the configuration.\n  - {problem}")


def test_validate_without_origins_names_the_source() -> None:
    with pytest.raises(ConfigError, match=r"^here: 1 problem in the configuration\.\n  - `name` \(here\)"):
        validate({}, Root, source="here")
