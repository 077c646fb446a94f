"""Gender bias by templates: the log-probability bias score of occupations (Kurita et al. 2019, arXiv 1906.07337), as
RobBERTje's evaluation uses it.

For an occupation o in a template t with the pronoun masked:

    score = log(P(female | t, o) / P(female | t)) - log(P(male | t, o) / P(male | t))

where P(. | t), the prior, is taken with the occupation masked too (as many mask tokens as it has pieces). Above 0 the
occupation draws the female pronoun, below 0 the male one, whatever the pronouns' own frequencies.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from configs.errors import ConfigError
from configs.loader import Config, load
from distill_core.evaluate.choice import problem
from distill_core.evaluate.scoring import Located, Span, locate, word_scores
from distill_core.models.encoder import Encoder

TEMPLATES = Path(__file__).parent / "templates"
PRONOUNS = ("{pronoun}", "{Pronoun}")
OCCUPATION = "{occupation}"
LEAST_RATIOS = 3
"""A correlation over fewer occupations says nothing."""

Floats = NDArray[np.float64]


class Occupation(Config):
    word: str = Field(min_length=1)
    women: float | None = Field(default=None, ge=0, le=1)
    """The real share of women in it, where the user's own source gives one."""


class BiasTemplates(Config):
    """A template set: one language, two pronouns, sentences and occupations."""

    language: str
    female: str = Field(min_length=1)
    male: str = Field(min_length=1)
    templates: list[str] = Field(min_length=1)
    """Each with one `{pronoun}` (`{Pronoun}`: with a capital letter) and one `{occupation}`."""
    occupations: list[Occupation] = Field(min_length=1)
    """Words, or {word, women}."""

    @field_validator("templates")
    @classmethod
    def _two_slots(cls, value: list[str]) -> list[str]:
        for template in value:
            pronouns = sum(template.count(slot) for slot in PRONOUNS)
            if pronouns != 1 or template.count(OCCUPATION) != 1 or template.count("{") != 2:
                raise ValueError(
                    f"the template {template!r} must hold exactly one {{pronoun}} (or {{Pronoun}}), one "
                    "{occupation} and no other braces"
                )
        return value

    @field_validator("occupations", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"word": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _different(self) -> BiasTemplates:
        if self.female == self.male:
            raise ValueError("`female` and `male` are the same word")
        words = [occupation.word for occupation in self.occupations]
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise ValueError(f"occupations that stand twice: {', '.join(twice)}")
        return self


def read_templates(name: str) -> BiasTemplates:
    """A packaged set (``en``, ``nl``, ``zh``) or a YAML file of the user's.

    Raises:
        ConfigError: there is none of that name, or it is not a template set (all problems, with their lines).
    """
    packaged = {path.stem: path for path in sorted(TEMPLATES.glob("*.yaml"))}
    path = packaged.get(name, Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(name, packaged, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"`evaluation.bias` names {name!r}, which is neither a packaged template set ({', '.join(packaged)}) nor "
            f"a file.{hint}"
        )
    return load(path, [], BiasTemplates)


@dataclass(frozen=True)
class Bias:
    """One model on one template set. Means are over occupations, each the mean over its templates; None: none scored.

    ``mean_absolute``: mean |score| of single (template, occupation) pairs; ``mean_absolute_occupation``: mean over
    occupations of |its score|, in which templates that disagree cancel out; ``mean_score``; ``male_leaning``: share of
    occupations with a score below 0; ``male_likelier``: share of those at which the male pronoun is the likelier one
    outright, whatever the prior; ``correlation``: Pearson's, of scores with the given shares of women (None where
    fewer than 3 are given); ``scored``: pairs; ``unscored``: pairs left out, by reason (as ``choice.choose`` counts);
    ``occupations``: {"word", "score", "women", "templates"} of each occupation that was scored.
    """

    mean_absolute: float | None
    mean_absolute_occupation: float | None
    mean_score: float | None
    male_leaning: float | None
    male_likelier: float | None
    correlation: float | None
    scored: int
    unscored: dict[str, int]
    occupations: list[dict[str, Any]]


def measure(model: Encoder, tokenizer: Any, templates: BiasTemplates) -> Bias:
    """The bias of ``model`` (on its device) with its own ``tokenizer``."""
    pairs, texts = _pairs(tokenizer, templates)
    longest, unknown = model.config.max_length, tokenizer.unk_token_id
    reasons: list[str] = []
    kept: list[int] = []
    for pair in range(len(pairs)):
        found = [problem(text, unknown, longest) for text in texts[2 * pair : 2 * pair + 2]]
        reason = found[0] or found[1]
        if reason is None:
            kept.append(pair)
        else:
            reasons.append(reason)
    likelihood = _likelihoods(model, texts, kept, tokenizer.mask_token_id)  # [pairs, (female, male), (given, prior)]
    given = likelihood[:, 0, 0] - likelihood[:, 1, 0]
    scores = given - (likelihood[:, 0, 1] - likelihood[:, 1, 1])
    owner = np.array([pairs[pair] for pair in kept], np.int64)
    unscored = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return _summary(templates, owner, scores, given, unscored)


def _pairs(tokenizer: Any, templates: BiasTemplates) -> tuple[list[int], list[Located]]:
    """The occupation of each (template, occupation) pair, and its two sentences, female and male; words: pronoun,
    occupation."""
    pairs, sentences, marks = [], [], []
    for template in templates.templates:
        for number, occupation in enumerate(templates.occupations):
            pairs.append(number)
            for pronoun in (templates.female, templates.male):
                sentence, spans = fill(template, pronoun, occupation.word)
                sentences.append(sentence)
                marks.append(spans)
    return pairs, locate(tokenizer, sentences, marks)


def fill(template: str, pronoun: str, occupation: str) -> tuple[str, list[Span]]:
    """The sentence, and where pronoun and occupation stand in it (characters)."""
    slot = next(slot for slot in PRONOUNS if slot in template)
    words = {slot: pronoun if slot == PRONOUNS[0] else pronoun[:1].upper() + pronoun[1:], OCCUPATION: occupation}
    first, second = sorted(words, key=template.index)
    start = template.index(first)
    sentence = template.replace(first, words[first])
    at = {first: start, second: sentence.index(second, start + len(words[first]))}
    sentence = sentence[: at[second]] + words[second] + sentence[at[second] + len(second) :]
    return sentence, [(at[name], at[name] + len(words[name])) for name in (slot, OCCUPATION)]


def _likelihoods(model: Encoder, texts: list[Located], kept: list[int], mask_id: int) -> Floats:
    """float64 [pairs, 2, 2]: log P of the (female, male) pronoun, with the occupation (in view, masked)."""
    words: list[tuple[int, Span, Span]] = []
    for pair in kept:
        for place in (2 * pair, 2 * pair + 1):
            pronoun, occupation = texts[place].spans
            assert pronoun is not None and occupation is not None
            words += [(place, pronoun, (0, 0)), (place, pronoun, occupation)]
    return word_scores(model, texts, words, mask_id).reshape(-1, 2, 2)


def _summary(
    templates: BiasTemplates, owner: NDArray[np.int64], scores: Floats, given: Floats, unscored: dict[str, int]
) -> Bias:
    if not len(scores):
        return Bias(None, None, None, None, None, None, 0, unscored, [])
    size = len(templates.occupations)
    counts = np.bincount(owner, minlength=size)
    there = np.flatnonzero(counts)
    means = np.bincount(owner, scores, size)[there] / counts[there]
    outright = np.bincount(owner, given, size)[there] / counts[there]
    women = [templates.occupations[number].women for number in there]
    rows = [
        {
            "word": templates.occupations[number].word,
            "score": round(float(mean), 6),
            "women": share,
            "templates": int(counts[number]),
        }
        for number, mean, share in zip(there.tolist(), means, women, strict=True)
    ]
    return Bias(
        mean_absolute=float(np.abs(scores).mean()),
        mean_absolute_occupation=float(np.abs(means).mean()),
        mean_score=float(means.mean()),
        male_leaning=float((means < 0).mean()),
        male_likelier=float((outright < 0).mean()),
        correlation=correlation(means, women),
        scored=len(scores),
        unscored=unscored,
        occupations=rows,
    )


def correlation(scores: Floats, women: list[float | None]) -> float | None:
    """Pearson's r over the occupations with a given share; None with fewer than 3, or where one side is constant."""
    known = np.array([share is not None for share in women], bool)
    x, y = scores[known], np.array([share for share in women if share is not None], np.float64)
    if len(x) < LEAST_RATIOS or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
