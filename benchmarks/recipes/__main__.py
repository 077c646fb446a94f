"""Reference curves: every recipe in configs/recipes from text to an exported student, on a small scale.

    python -m benchmarks.recipes TEXTS... --train train.jsonl --dev dev.jsonl [--seeds 1 2 3] [--only RECIPES...]

Each recipe, with each seed, is a run of `distill run` under OUT/runs; those that are finished are not made again, and
broken off ones go on, so that the command can be repeated, also with other recipes and seeds, which are added. Teachers
that are not given are made from the same texts. The page is made from all finished runs in OUT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.recipes.curves import read_curves
from benchmarks.recipes.page import write_page
from benchmarks.recipes.runs import (
    PRESETS,
    RECIPES,
    FailedRun,
    Material,
    carry_out,
    finished_runs,
    first_rows,
    given_teacher,
    kind_of,
    made_teacher,
    recipe_tree,
)
from benchmarks.recipes.small import SMALL, Scale
from configs.errors import ConfigError


def arguments(words: Sequence[str] | None, scale: Scale) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", help="files of text or JSON lines")
    parser.add_argument("--train", type=Path, required=True, help="rows of a classification task, JSON lines")
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--train-rows", type=int, default=1000, help="taken from the beginning of --train")
    parser.add_argument("--dev-rows", type=int, default=500)
    parser.add_argument("--megabytes", type=float, help="of all texts together; default: all")
    parser.add_argument("--teacher", type=Path, help="folder of a small BERT with vocab.txt; default: one is made")
    parser.add_argument("--bpe-teacher", type=Path, help="folder of a small RoBERTa; default: one is made")
    parser.add_argument("--teacher-steps", type=int, default=scale.teacher_steps, help="of a teacher that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES, metavar="RECIPE")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--page", type=Path, help="where the Markdown page is written; default: OUT/curves.md")
    return parser.parse_args(words)


def spoken(words: Sequence[str]) -> str:
    """The command, with the last parts of paths, and for all recipes: runs add up, however they were called for."""
    shown, skip = ["python -m benchmarks.recipes"], False
    for word in words:
        skip = word == "--only" or (skip and not word.startswith("--"))
        if not skip:
            shown.append(Path(word).name if "/" in word else word)
    return " ".join(shown)


def main(words: Sequence[str] | None = None, scale: Scale = SMALL) -> int:
    """The exit status: 1 if a recipe failed, which does not keep the others back."""
    given = arguments(words, scale)
    out: Path = given.out.resolve()
    rows = {
        name: first_rows(path, count, out / "rows" / f"{name}.jsonl")
        for name, path, count in (("train", given.train, given.train_rows), ("dev", given.dev, given.dev_rows))
    }
    texts = [str(Path(text).resolve()) if Path(text).exists() else text for text in given.texts]
    material = Material(out, texts, given.megabytes, rows, scale, given.teacher_steps)
    folders = {"wordpiece": given.teacher, "bpe": given.bpe_teacher}
    teachers: dict[str, Path] = {}
    failed: list[str] = []
    for recipe in given.only:
        try:
            kind = kind_of(recipe)
            if kind not in teachers:
                folder = folders[kind]
                teachers[kind] = given_teacher(folder, kind, scale) if folder else made_teacher(kind, material)
            carry_out(recipe_tree(recipe, material, teachers[kind], given.seeds), recipe, out / "runs")
        except FailedRun as error:
            print(error, file=sys.stderr, flush=True)
            failed.append(recipe)
    found = [read_curves(recipe, runs) for recipe in RECIPES if (runs := finished_runs(recipe, out))]
    page = given.page or out / "curves.md"
    ordered = {kind: teachers[kind] for kind in PRESETS if kind in teachers}
    write_page(page, spoken(sys.argv[1:] if words is None else words), material, ordered, found)
    print(f"{len(found)} of {len(RECIPES)} recipes in {page}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"{error}")
