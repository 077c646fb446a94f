"""The report's part on the data and on what was run: manifest and environment -> tables and sentences."""

from __future__ import annotations

from typing import Any

from configs.loader import to_yaml
from data_prep.page import Table
from distill_core.outcome import Outcome
from distill_core.report_facts import show

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "jieba", "zhengliu")


def vocabulary(manifest: dict[str, Any]) -> str | None:
    """Size, kind and origin of the run's tokenizer."""
    tokenizer = manifest.get("tokenizer")
    if not tokenizer:
        return None
    how = "trained on the corpus" if tokenizer.get("trained") else "given"
    return f"{tokenizer.get('vocab_size', 0):,} tokens ({tokenizer.get('kind')}, {how})"


def data_tables(manifest: dict[str, Any]) -> list[Table]:
    """Facts of the prepared corpus; a key that the manifest lacks is left out."""
    segmenter, masking = manifest.get("segmenter") or {}, manifest.get("masking") or {}
    facts: dict[str, Any] = {
        "corpus hash": manifest.get("hash"),
        "inputs": describe_inputs(manifest.get("inputs") or {}),
    }
    for key in ("documents", "characters", "text_bytes"):
        facts[key.replace("_", " ")] = show(manifest.get(key), "{:,}")
    facts["vocabulary"] = vocabulary(manifest)
    facts["segmenter"] = ", ".join(f"{k} {v}" for k, v in segmenter.items() if v is not None)
    facts["sequences"] = manifest.get("variant")
    facts["masks"] = ", ".join(f"{k} {v}" for k, v in masking.items())
    facts["preparation"] = show(manifest.get("megabytes_per_second"), "{:.2f} MB/s")
    tables = [Table("", ["", ""], [[k, str(v)] for k, v in facts.items() if v not in (None, "", "–")], 2)]
    splits = manifest.get("splits") or {}
    keys = list(dict.fromkeys(k for facts in splits.values() for k in facts))
    rows = [[name, *(show(split.get(key), "{:,}") for key in keys)] for name, split in splits.items()]
    tables.append(Table("Splits", ["split", *keys], rows))
    dropped = manifest.get("dropped") or {}
    rows = [[str(reason).replace("_", " "), f"{count:,}"] for reason, count in dropped.items()]
    tables.append(Table("Dropped", ["reason", "records"], rows or [["nothing", "0"]]))
    return tables


def describe_inputs(inputs: dict[str, int]) -> str:
    """path -> bytes, in a few words."""
    paths = list(inputs)
    size = f"{sum(inputs.values()) / 1e6:,.2f} MB"
    if len(paths) > 3:
        return f"{len(paths)} files, {paths[0]} to {paths[-1]} ({size})"
    return f"{', '.join(paths)} ({size})" if paths else ""


def environment_tables(environment: dict[str, Any]) -> list[Table]:
    if not environment:
        return []
    packages = environment.get("packages") or {}
    gpus = environment.get("gpus") or []
    rows = [
        [key.replace("_", " "), str(environment[key])]
        for key in ("launched", "revision", "python", "platform", "processor", "cores", "memory_gigabytes")
        if environment.get(key) is not None
    ]
    rows += [["GPUs", ", ".join(str(g.get("name", g)) if isinstance(g, dict) else str(g) for g in gpus) or "none"]]
    rows += [[name, packages[name]] for name in PACKAGES if name in packages]
    return [Table("", ["", ""], rows, 2)]


def command(outcome: Outcome) -> str:
    """As it was typed, where the launcher wrote it down; else one that repeats the run."""
    given = outcome.environment.get("command")
    if isinstance(given, list):
        return " ".join(map(str, given))
    return str(given) if given else f"distill run {outcome.folder / 'config.yaml'}"


def resolved_yaml(outcome: Outcome) -> str:
    path = outcome.folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else to_yaml(outcome.config)
