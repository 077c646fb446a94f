"""The report's part on language measurements: evaluation/*.json -> tables and sentences."""

from __future__ import annotations

from typing import Any

from data_prep.page import Table
from distill_core.outcome import Outcome, Rows, read_json
from distill_core.report_facts import show

NOTES = {
    "pseudo_perplexity": "Pseudo-perplexity masks every token of held-out sequences in turn. Per sentence: exp of the "
    "mean over sequences of their mean loss (RobBERTje); per token: exp of the total loss over all tokens (Salazar et "
    "al. 2020). Compare models with one vocabulary only.",
    "bias": "Log-probability bias score by templates: above 0 an occupation draws the female pronoun, below 0 the male "
    "one, beyond the pronouns' own frequencies. Mean |score|: of single sentences; by occupation: of its mean over "
    "the templates. Male-leaning: share of occupations below 0. Male likelier: share at "
    "which the male pronoun is the likelier one outright. r: correlation with the given shares of women.",
    "choices": "Zero-shot choice: how often the right word is the likeliest of those offered for the gap.",
}
"""By the name of the file under evaluation/."""


def results(outcome: Outcome) -> dict[str, Rows]:
    """name -> rows of the measurements that the run file asks for and that are there."""
    found = {}
    for name in asked(outcome):
        content = read_json(outcome.folder / "evaluation" / f"{name}.json")
        if content is not None:
            found[name] = content.get("rows", [])
    return found


def asked(outcome: Outcome) -> list[str]:
    config = outcome.config.evaluation
    return [name for name in NOTES if getattr(config, name)]


def missing(outcome: Outcome) -> list[str]:
    there = results(outcome)
    return [f"The {name.replace('_', '-')} evaluation is not made yet." for name in asked(outcome) if name not in there]


def notes(outcome: Outcome) -> list[str]:
    return [NOTES[name] for name in results(outcome)]


def tables(outcome: Outcome) -> list[Table]:
    """Models side by side, a table a measurement."""
    makers = {"pseudo_perplexity": perplexity_table, "bias": bias_table, "choices": choices_table}
    return [makers[name](rows) for name, rows in results(outcome).items() if rows]


def perplexity_table(rows: Rows) -> Table:
    columns = ["model", "per sentence", "per token", "sequences", "tokens"]
    forms = {"per_sentence": "{:,.2f}", "per_token": "{:,.2f}", "sequences": "{:,}", "tokens": "{:,}"}
    cells = [[_name(row), *(show(row.get(key), form) for key, form in forms.items())] for row in rows]
    return Table("Pseudo-perplexity", columns, cells)


def bias_table(rows: Rows) -> Table:
    columns = ["templates", "model", "mean |score|", "by occupation"]
    columns += ["mean score", "male-leaning", "male likelier", "r", "scored", "left out"]
    forms = {
        "mean_absolute": "{:.3f}",
        "mean_absolute_occupation": "{:.3f}",
        "mean_score": "{:+.3f}",
        "male_leaning": "{:.0%}",
        "male_likelier": "{:.0%}",
        "correlation": "{:+.2f}",
        "scored": "{:,}",
    }
    cells = [
        [row.get("set", "–"), _name(row), *(show(row.get(key), form) for key, form in forms.items()), _left_out(row)]
        for row in rows
    ]
    return Table("Gender bias of occupations", columns, cells, 2)


def choices_table(rows: Rows) -> Table:
    cells = [
        [_name(row), show(row.get("accuracy"), "{:.1%}"), show(row.get("items"), "{:,}"), _left_out(row)]
        for row in rows
    ]
    return Table("Zero-shot choice", ["model", "accuracy", "scored", "left out"], cells)


def occupation_listings(outcome: Outcome) -> dict[str, str]:
    """title -> lines "word, a score a model", from the most male-leaning occupation of the first model on."""
    listings = {}
    rows = [row for row in results(outcome).get("bias", []) if "set" in row]
    for which in dict.fromkeys(row["set"] for row in rows):
        here = [row for row in rows if row["set"] == which]
        scores = [{item["word"]: item["score"] for item in row["occupations"]} for row in here]
        words = sorted({word: None for found in scores for word in found}, key=lambda w: scores[0].get(w, 0.0))
        lines = ["\t".join([*(row["model"] for row in here), "occupation"])]
        lines += ["\t".join([*(show(found.get(word), "{:+.3f}") for found in scores), word]) for word in words]
        if len(lines) > 1:
            listings[f"bias scores by occupation ({which})"] = "\n".join(lines)
    return listings


def _name(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['model']} (not measured: {row['skipped'].rstrip('.')})"
    return f"{row['model']}{'' if row['has_head'] else ' (random: no masked-LM head)'}"


def _left_out(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return "–"
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in row["unscored"].items()) or "0"


# ---------------------------------------------------------------- early stopping


def early_stopping_table(outcome: Outcome) -> Table:
    """The finished stages that might have stopped early."""
    rows = []
    for done in _watched(outcome):
        early = done["early_stopping"]
        taken = f"{done['steps']:,} of {early['at_most']:,}"
        best = [show(early["best"], "{:.6g}"), show(early["best_step"], "{:,}")]
        rows.append([done["name"], early["metric"], str(early["patience"]), f"{early['min_delta']:g}", taken, *best])
    columns = ["stage", "metric", "patience", "least change", "steps", "best", "after step"]
    return Table("Early stopping", columns, rows, 2)


def early_stopping_notes(outcome: Outcome) -> list[str]:
    """Why stages ended before their last step."""
    return [f"{done['name']} {reason}." for done in _watched(outcome) if (reason := done["early_stopping"]["reason"])]


def _watched(outcome: Outcome) -> list[dict[str, Any]]:
    """What finished stages with early stopping have left."""
    return [stage.done for stage in outcome.stages if stage.done is not None and stage.done.get("early_stopping")]


# ---------------------------------------------------------------- tasks


def tasks_table(outcome: Outcome) -> Table:
    """The models trained for tasks, with their scores on the dev rows."""
    names = list(dict.fromkeys(name for found in outcome.tasks for name in found.scores))
    rows = []
    for found in outcome.tasks:
        scores = [show(found.scores.get(name), "{:.4f}") for name in names]
        facts = [f"{found.parameters:,}", f"{found.rows:,}", f"{found.selected_step:,}"]
        rows.append([found.name, found.task, *facts, *scores, show(found.agreement, "{:.1%}")])
        if found.teacher_scores is not None:
            theirs = [show(found.teacher_scores.get(name), "{:.4f}") for name in names]
            rows.append([f"its teacher {found.teacher}", found.task, *["–"] * 3, *theirs, "–"])
    columns = [
        "model",
        "task",
        "parameters",
        "dev rows",
        "step",
        *(name.replace("_", " ") for name in names),
        "agreement",
    ]
    return Table("", columns, rows, 2)
