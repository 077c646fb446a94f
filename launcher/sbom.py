"""A bill of materials of this Python's packages: CycloneDX 1.6 as JSON, as scanners for known holes read it.

The format is plain enough to be written by hand; a test holds it against the schema of the CycloneDX library.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageMetadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import InvalidRequirement, Requirement

PROJECT = "zhengliu"
CHARACTERS = 200
"""Of a licence's name: some packages put its whole text there."""


def write(path: Path) -> int:
    """Write the bill to ``path``; returns the number of packages.

    Raises:
        OutputError: it cannot be written.
    """
    from launcher.launch import write as whole

    bill = describe(importlib.metadata.distributions())
    whole(path, json.dumps(bill, indent=2, ensure_ascii=False) + "\n")
    return len(bill["components"])


def describe(distributions: Iterable[Distribution]) -> dict[str, Any]:
    """The bill of these packages; the project itself, if it is among them, is what they are for."""
    found = {normal(d.metadata["Name"]): d for d in distributions if d.metadata["Name"]}
    own = found.pop(PROJECT, None)
    names = sorted(found)
    purls = "\n".join(purl(found[name]) for name in names)
    main = {"type": "application", "bom-ref": PROJECT, "name": PROJECT, "version": own.version if own else "0"}
    depending = [(PROJECT, own)] if own else []
    depending += [(purl(found[name]), found[name]) for name in names]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, purls)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": main,
            "properties": [
                {"name": "python", "value": platform.python_version()},
                {"name": "platform", "value": platform.platform()},
            ],
        },
        "components": [_component(found[name]) for name in names],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted({purl(found[name]) for name in _needs(one) if name in found})}
            for ref, one in depending
        ],
    }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(one: Distribution) -> str:
    """The name under which databases of vulnerabilities know a package."""
    return f"pkg:pypi/{normal(one.metadata['Name'])}@{quote(one.version, safe='')}"


def _component(one: Distribution) -> dict[str, Any]:
    about = {
        "type": "library",
        "bom-ref": purl(one),
        "name": one.metadata["Name"],
        "version": one.version,
        "purl": purl(one),
    }
    licences = _licences(one)
    return about | ({"licenses": licences} if licences else {})


def _licences(one: Distribution) -> list[dict[str, Any]]:
    """As the package states them: an SPDX expression, a name, or what its classifiers say."""
    facts = one.metadata
    expression = _stated(facts, "License-Expression")
    if expression:
        return [{"expression": expression}]
    stated = _stated(facts, "License")
    classifiers = [str(line) for line in facts.get_all("Classifier") or []]
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    names = [stated] if stated and len(stated) <= CHARACTERS else named
    return [{"license": {"name": name}} for name in dict.fromkeys(names)]


def _stated(facts: PackageMetadata, key: str) -> str:
    return " ".join(str(facts[key]).split()) if key in facts else ""


def _needs(one: Distribution) -> list[str]:
    """Names of what a package needs here, without its extras."""
    found = []
    for line in one.requires or []:
        try:
            needed = Requirement(line)
        except InvalidRequirement:  # of a package from before there was a rule
            continue
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            found.append(normal(needed.name))
    return found
