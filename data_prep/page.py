"""What the reports of a corpus and of a run have in common: sections of notes, tables, plots and listings on a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """``text_columns``: so many from the left hold words, the others numbers (aligned right)."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Code:
    """A listing; ``folded`` away until it is wanted."""

    title: str
    language: str
    text: str
    folded: bool = True


@dataclass(frozen=True)
class Plot:
    """An <svg> element; ``wide``: takes the whole line. ``heading``: stands above it."""

    svg: str
    wide: bool = False
    heading: str = ""


@dataclass(frozen=True)
class Section:
    """Shown in this order: notes, tables, plots (HTML only), listings."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)


def render(template: str, facts: dict[str, Any], *more_templates: Path) -> str:
    """``report.html.j2``, or a template of another folder, filled with name, headline, missing and sections."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, *more_templates]),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "cell": markdown_cell}
    return environment.get_template(template).render(facts)


def markdown_cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
