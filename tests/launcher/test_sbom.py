"""The bill of materials, against the schema of its format and what is installed."""

from __future__ import annotations

import importlib.metadata
import json
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from configs.errors import OutputError
from launcher import cli, sbom


def problems(text: str) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_of_this_environment(tmp_path: Path) -> None:
    path = tmp_path / "bill.json"
    assert cli.status_of(lambda: cli.app(["doctor", "--sbom", str(path)], prog_name="distill")) == 0
    text = path.read_text(encoding="utf-8")
    assert problems(text) is None
    bill = json.loads(text)
    named = {part["name"].lower(): part for part in bill["components"]}
    for name in ("torch", "numpy", "typer"):
        assert named[name]["version"] == importlib.metadata.version(name)
    assert named["numpy"]["purl"] == f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}"
    assert "zhengliu" not in named and bill["metadata"]["component"]["name"] == "zhengliu"
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert named["numpy"]["purl"] in needs[named["scipy"]["purl"]]
    assert needs[named["numpy"]["purl"]] == []
    assert sum("licenses" in part for part in bill["components"]) > 0.9 * len(named)
    assert problems(text.replace('"bomFormat"', '"bomformat"')) is not None  # the validator does look


def package(name: str, version: str, *requires: str, **facts: str) -> Any:
    metadata = Message()
    for key, value in {"Name": name, **{key.replace("_", "-"): value for key, value in facts.items()}}.items():
        metadata[key] = value
    return cast(Any, SimpleNamespace(metadata=metadata, version=version, requires=list(requires)))


def test_what_packages_say_of_themselves() -> None:
    found = [
        package("zhengliu", "0.1.0", "A_b.c>=1", "gone"),
        package(
            "A_b.c", "2.13.0+cpu", "d; extra == 'x'", "not a requirement !", License_Expression="MIT OR Apache-2.0"
        ),
        package(
            "d", "1!2", "a-b-c", License="The whole text. " * 99, Classifier="License :: OSI Approved :: BSD License"
        ),
        package("e", "1", License="UNKNOWN"),
    ]
    bill = sbom.describe(found)
    assert problems(json.dumps(bill)) is None
    first, second, third = bill["components"]
    assert first["purl"] == "pkg:pypi/a-b-c@2.13.0%2Bcpu"
    assert [part.get("licenses") for part in (first, second, third)] == [
        [{"expression": "MIT OR Apache-2.0"}],
        [{"license": {"name": "BSD License"}}],
        [{"license": {"name": "UNKNOWN"}}],
    ]
    assert {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]} == {
        "zhengliu": [first["purl"]],
        first["purl"]: [],
        second["purl"]: [first["purl"]],
        third["purl"]: [],
    }
    assert sbom.describe(found)["serialNumber"] == bill["serialNumber"] != sbom.describe(found[:2])["serialNumber"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        sbom.write(tmp_path / "file" / "bill.json")
