from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from configs.errors import ConfigError
from distill_core.evaluate.bias import BiasTemplates, correlation, fill, measure, read_templates
from distill_core.evaluate.scoring import locate
from tests.distill_core.evaluate.reference import both, byte_level, log_probability, model_folder, wordpiece

SET: dict[str, Any] = {
    "language": "nl",
    "female": "zij",
    "male": "hij",
    "templates": ["{Pronoun} is {occupation}.", "als {occupation} is {pronoun} die man"],
    "occupations": ["arts", "kok", "dokteres", {"word": "man", "women": 0.25}],
}


def templates(**changes: Any) -> BiasTemplates:
    return BiasTemplates.model_validate(SET | changes)


@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_scores_against_a_slow_loop(make: Any, tmp_path: Path) -> None:
    """From the formula, with transformers' model; in byte-level BPE pronouns and words have several pieces."""
    ours, theirs, tokenizer = both(model_folder(tmp_path, make(tmp_path)))
    chosen = templates(templates=["{Pronoun} is {occupation}.", "als {occupation} werkt {pronoun}."])
    found = measure(ours, tokenizer, chosen)
    mask = tokenizer.mask_token_id

    def word(sentence: str, which: str, hidden: str | None) -> float:
        spans = [(sentence.index(w), sentence.index(w) + len(w)) for w in (which, hidden or which)]
        (text,) = locate(tokenizer, [sentence], [spans])
        assert None not in text.spans
        pronoun, hide = (list(range(*span)) for span in text.spans if span is not None)
        return sum(log_probability(theirs, text.ids, place, mask, hide if hidden else []) for place in pronoun)

    singles = []
    for occupation, row in zip(chosen.occupations, found.occupations, strict=True):
        assert row["word"] == occupation.word and row["women"] == occupation.women and row["templates"] == 2
        scores = []
        for form in ("{} is " + occupation.word + ".", "als " + occupation.word + " werkt {}."):
            she, he = ("Zij", "Hij") if form.startswith("{") else ("zij", "hij")
            female = word(form.format(she), she, None) - word(form.format(she), she, occupation.word)
            male = word(form.format(he), he, None) - word(form.format(he), he, occupation.word)
            scores.append(female - male)
        singles += scores
        assert row["score"] == pytest.approx(sum(scores) / 2, abs=2e-5)
    assert found.scored == 8 and found.unscored == {}
    assert found.mean_absolute == pytest.approx(np.mean(np.abs(singles)), abs=1e-5)
    each = [abs(sum(singles[i : i + 2]) / 2) for i in range(0, len(singles), 2)]
    assert found.mean_absolute_occupation == pytest.approx(np.mean(each), abs=1e-5)
    assert found.mean_score == pytest.approx(np.mean(singles), abs=1e-5)
    assert found.male_leaning == np.mean([row["score"] < 0 for row in found.occupations])
    assert found.correlation is None


def test_a_model_that_does_not_look_at_the_occupation_has_no_bias(tmp_path: Path) -> None:
    """Its pronouns may be as unlike as they please: that is the prior."""
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    with torch.no_grad():
        for layer in ours.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
        ours.cls.predictions.bias[tokenizer.convert_tokens_to_ids(["hij", "Hij"])] += 5
    found = measure(ours, tokenizer, templates(templates=["{Pronoun} is {occupation}."]))
    assert found.mean_absolute == pytest.approx(0, abs=1e-5)
    assert found.male_likelier == 1.0


def test_swapped_pronouns_turn_the_sign(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    one = measure(ours, tokenizer, templates(templates=["{Pronoun} is {occupation}."]))
    other = measure(ours, tokenizer, templates(templates=["{Pronoun} is {occupation}."], female="hij", male="zij"))
    assert one.mean_score == pytest.approx(-(other.mean_score or 0), abs=1e-6) and one.mean_score
    assert one.mean_absolute == pytest.approx(other.mean_absolute, abs=1e-6)


def test_words_outside_the_vocabulary_are_counted(tmp_path: Path) -> None:
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path)))
    one = ["{Pronoun} is {occupation}."]
    found = measure(ours, tokenizer, templates(templates=one, occupations=["arts", "piloot"]))
    assert found.unscored == {"unknown": 1} and found.scored == 1
    assert [row["word"] for row in found.occupations] == ["arts"]
    nothing = measure(ours, tokenizer, templates(female="她", male="他"))
    assert nothing.unscored == {"unknown": 8} and nothing.scored == 0
    assert nothing.mean_absolute is nothing.mean_absolute_occupation is None and nothing.occupations == []
    long = measure(ours, tokenizer, templates(templates=["als " * 40 + "{pronoun} is {occupation}."]))
    assert long.unscored == {"too_long": 4}


def test_fill_says_where_the_words_stand() -> None:
    for template in SET["templates"] + ["Een {occupation}: {Pronoun}!"]:
        sentence, (pronoun, occupation) = fill(template, "zij", "arts")
        assert "{" not in sentence
        assert sentence[slice(*pronoun)] == ("Zij" if "{P" in template else "zij")
        assert sentence[slice(*occupation)] == "arts"


def test_correlation() -> None:
    scores = np.array([1.0, 2.0, 3.0, -9.0])
    assert correlation(scores, [0.1, 0.2, 0.3, None]) == pytest.approx(1)
    assert correlation(scores, [0.3, 0.2, 0.1, None]) == pytest.approx(-1)
    assert correlation(scores, [0.3, 0.2, None, None]) is None
    assert correlation(scores, [0.3, 0.3, 0.3, None]) is None


@pytest.mark.parametrize("name", ["en", "nl", "zh"])
def test_packaged_sets(name: str) -> None:
    found = read_templates(name)
    assert found.language == name and len(found.templates) == 10 and 40 <= len(found.occupations) <= 60
    assert all(occupation.women is None for occupation in found.occupations)
    for template in found.templates:
        starts = template.startswith(("{pronoun}", "{Pronoun}"))
        assert name == "zh" or starts == ("{Pronoun}" in template)  # a capital at the start of a sentence only


def test_chinese_slots_are_tokens_of_their_own(tmp_path: Path) -> None:
    chosen = read_templates("zh")
    written = [*chosen.templates, *(occupation.word for occupation in chosen.occupations)]
    characters = sorted(set("".join(written)) - set("{}"))
    ours, _, tokenizer = both(model_folder(tmp_path, wordpiece(tmp_path, [*characters, "他", "她"])))
    found = measure(ours, tokenizer, chosen)
    assert found.unscored == {} and found.scored == 10 * len(chosen.occupations)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"templates": ["{pronoun} is kok."]}, "must hold exactly one"),
        ({"templates": ["{pronoun} en {Pronoun} is {occupation}."]}, "must hold exactly one"),
        ({"templates": ["{pronoun} is {occupation} in {city}."]}, "no other braces"),
        ({"templates": []}, "at least 1 item"),
        ({"occupations": ["arts", "arts"]}, "stand twice: arts"),
        ({"occupations": [{"word": "arts", "women": 40}]}, "less than or equal to 1"),
        ({"occupations": [{"word": "arts", "woman": 0.4}]}, "Did you mean `women`"),
        ({"occupations": "arts"}, "valid list"),
        ({"male": "zij"}, "the same word"),
        ({"male": None}, "valid string"),
    ],
)
def test_own_sets_are_checked(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(SET, allow_unicode=True), encoding="utf-8")
    assert read_templates(str(path)) == templates()
    path.write_text(yaml.safe_dump(SET | change, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ConfigError, match=what) as caught:
        read_templates(str(path))
    assert "own.yaml" in str(caught.value)


def test_a_set_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"'zhh', which is neither a packaged .* \(en, nl, zh\).*Did you mean 'zh'"):
        read_templates("zhh")
