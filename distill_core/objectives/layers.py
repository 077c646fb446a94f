"""Which teacher layer each student layer is compared with.

Pairs are (teacher, student) in Hugging Face's numbering of hidden states: 0 is the embedding output, i the output
(or the attention) of layer i. With T teacher and S student layers the named maps are, for student layer m:

| name | teacher layer | source |
|---|---|---|
| ``uniform`` | m T / S; S must divide T | TinyBERT (arXiv 1909.10351), g(m) |
| ``last`` | T for m = S, no other | MiniLM (arXiv 2002.10957) |
| ``top`` | T - S + m | TinyBERT's ablation |
| ``bottom`` | m | TinyBERT's ablation |
| ``symmetric`` | m in the lower half, T - S + m in the upper | Sajjad et al. (arXiv 2004.03844): no middle |

Hidden states are also matched at the embeddings (0-0), which no attention has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

from configs.errors import ConfigError

MapName = Literal["uniform", "last", "top", "bottom", "symmetric"]
LayerMap = MapName | list[tuple[int, int]]
NAMES: tuple[str, ...] = get_args(MapName)


def layer_pairs(
    layers: LayerMap, teacher_layers: int, student_layers: int, who: str, embeddings: bool
) -> list[tuple[int, int]]:
    """The (teacher, student) pairs of a map, checked against the two depths.

    Args:
        who: the loss, for messages.
        embeddings: whether layer 0 (the embedding output) can be matched.

    Raises:
        ConfigError: a layer is out of range, ``uniform`` does not come out even, the list is empty or repeats itself.
    """
    t, s = teacher_layers, student_layers
    if isinstance(layers, list):
        pairs = [(a, b) for a, b in layers]
        check_listed(pairs, who)
    elif layers == "last":
        return [(t, s)]
    else:
        pairs = [(_named(layers, m, t, s, who), m) for m in range(1, s + 1)]
        if embeddings:
            pairs.insert(0, (0, 0))
    lowest = 0 if embeddings else 1
    for a, b in pairs:
        _check("teacher", a, t, who, lowest)
        _check("student", b, s, who, lowest)
    return pairs


def _named(name: str, m: int, teacher: int, student: int, who: str) -> int:
    if name == "uniform":
        if teacher % student:
            fits = ", ".join(str(n) for n in range(1, teacher + 1) if teacher % n == 0)
            raise ConfigError(
                f"{who} with layers: uniform needs a student depth that divides the teacher's, but the student has "
                f"{student} layers and the teacher {teacher} (fitting: {fits}). Give the pairs as "
                "layers: [[teacher, student], ...], or take layers: top, bottom, symmetric or last."
            )
        return m * teacher // student
    if student > teacher:
        raise ConfigError(
            f"{who} with layers: {name} needs a teacher that is as deep as the student, but it has {teacher} layers "
            f"and the student {student}. Give the pairs as layers: [[teacher, student], ...]."
        )
    if name == "bottom" or (name == "symmetric" and m <= (student + 1) // 2):
        return m
    return teacher - student + m


def check_listed(matches: Sequence[Any], who: str) -> None:
    """Raises ConfigError: there is no match, or the same one twice (a weight says that more clearly)."""
    if not matches:
        raise ConfigError(
            f"{who} has no layers to compare: layers: [] is empty. Give pairs as layers: [[teacher, student], ...], "
            f"take a map ({', '.join(NAMES)}), or remove the loss."
        )
    twice = next((match for place, match in enumerate(matches) if match in matches[:place]), None)
    if twice is not None:
        raise ConfigError(
            f"{who} names the match {json.dumps(twice)} twice; name it once, and raise the loss's weight if it is to "
            "count for more."
        )


def _check(model: str, layer: int, depth: int, who: str, lowest: int) -> None:
    if not lowest <= layer <= depth:
        first = "0 (embeddings)" if lowest == 0 else "1"
        hint = f" Layer 0 is the embedding output, which {who} does not compare." if lowest == 1 and layer == 0 else ""
        raise ConfigError(f"{who} names {model} layer {layer}, but the {model} has layers {first} to {depth}.{hint}")
