"""Prepared samples drawn as text, so that a person sees words and masks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import TokenizerConfig
from data_prep.corpus import Corpus, SplitName
from data_prep.drops import clusters_of
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer

LEGEND = (
    "│ stands between words. 【词语→[MASK]】 is masked, 【词语→别的】 replaced by random tokens, 【词语→词语】 "
    "selected but kept: a word is always selected whole (with masks.unit: word)."
)
SHOWN_CHARACTERS = 120
"""Of a duplicate."""
ORDERS = {"next": ("B follows A", "B is random"), "swapped": ("A, then B", "swapped")}
"""What the label of a pair says, by ``sequences.pair_order``."""


def samples(corpus: Corpus, split: SplitName, count: int, view: int, first: int = 0) -> list[str]:
    """Up to ``count`` sequences of ``split`` from number ``first`` on under mask view ``view``, one text each."""
    return samples_at(corpus, split, range(first, min(first + count, len(corpus.split(split)))), view)


def samples_at(corpus: Corpus, split: SplitName, places: Sequence[int], view: int) -> list[str]:
    """The sequences of ``split`` with these numbers, as :func:`samples`."""
    part, index = corpus.split(split), np.array(places, np.int64)
    gathered, masks = part.gather(index), part.masks(index, np.full(len(index), view, np.int64))
    kind = corpus.manifest["tokenizer"]["kind"]
    tokenizer = open_tokenizer(corpus.tokenizer_folder, TokenizerConfig(kind=kind))
    orders = ORDERS[corpus.manifest["identity"]["sequences"].get("pair_order") or "next"]
    drawn = []
    for i in range(len(index)):
        here = slice(gathered.offsets[i], gathered.offsets[i + 1])
        selected = slice(masks.offsets[i], masks.offsets[i + 1])
        replaced = dict(zip(masks.positions[selected].tolist(), masks.ids[selected].tolist(), strict=True))
        text = draw_sequence(gathered.ids[here], gathered.continues[here], replaced, tokenizer)
        label = "" if gathered.order is None else f"({orders[gathered.order[i]]}) "
        drawn.append(label + text)
    return drawn


def draw_sequence(
    ids: NDArray[np.integer], continues: NDArray[np.bool_], replaced: dict[int, int], tokenizer: Tokenizer
) -> str:
    """One sequence: its words, and what masking makes of the selected ones.

    Args:
        ids, continues: [L], with [CLS] and [SEP].
        replaced: position -> id that stands there after masking.
        tokenizer: the corpus's.
    """
    starts = [*np.flatnonzero(~continues).tolist(), len(ids)]
    words = []
    for begin, end in itertools.pairwise(starts):
        word = tokenizer.decode(ids[begin:end].tolist()).strip()
        if any(place in replaced for place in range(begin, end)):
            after = tokenizer.decode([replaced.get(place, int(ids[place])) for place in range(begin, end)]).strip()
            word = f"【{word}→{after}】"
        words.append(word)
    return "│".join(words)


def totals(corpus: Corpus) -> dict[str, Any]:
    """What a person wants to know first about prepared data, by name."""
    manifest = corpus.manifest
    facts: dict[str, Any] = {"folder": str(corpus.folder), "corpus hash": corpus.hash}
    for name in ("train", "held_out"):
        split = manifest["splits"][name]
        facts[name] = (
            f"{split['documents']:,} documents, {split['sentences']:,} sentences, {split['sequences']:,} sequences, "
            f"{split['tokens']:,} tokens, {split['tokens'] / max(split['words'], 1):.2f} tokens a word, "
            f"{split['unknown'] / max(split['tokens'], 1):.2%} unknown"
        )
    drops = ", ".join(f"{n:,} {reason}" for reason, n in manifest["dropped"].items()) or "none"
    segmenter, tokenizer, masking = manifest["segmenter"], manifest["tokenizer"], manifest["masking"]
    facts["dropped documents"] = drops
    if manifest.get("removed"):  # an older manifest does not tell
        facts["removed characters"] = ", ".join(f"{n:,} {reason}" for reason, n in manifest["removed"].items())
    for label, source in manifest.get("sources", {}).items():
        facts[f"source {label}"] = describe_source(source)
    if manifest.get("duplicates"):
        found = manifest["duplicates"]
        facts["clusters of duplicates"] = f"{found['clusters']:,}, the largest of {found['largest']:,} documents"
    if manifest.get("short_units"):
        facts["dropped units"] = f"{manifest['short_units']:,} too short"
    facts["segmenter"] = f"{segmenter['name']} {segmenter['version']}"
    trained = ", trained on this corpus" if tokenizer["trained"] else ""
    facts["vocabulary"] = f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} entries{trained}"
    facts["sequences"] = describe_sequences(manifest["identity"]["sequences"])
    facts["masks"] = describe_masks(masking)
    facts["prepared in"] = f"{manifest['seconds']:.1f} s, {manifest['megabytes_per_second']:.2f} MB/s"
    return facts


def duplicates(corpus: Corpus, count: int) -> list[str]:
    """Up to ``count`` clusters of duplicates, the largest first: what became of each member, and its beginning."""
    names = [shard["name"] for shard in corpus.manifest["shards"]]
    drawn = []
    for members in clusters_of(corpus.folder, names)[:count]:
        size = members[0]["size"]
        lines = [f"{size:,} documents" + (f", {len(members)} of them shown" if len(members) < size else "")]
        for member in members:
            likeness = "" if member["similarity"] is None else f", similarity {member['similarity']:.2f}"
            place = f"{member['reason']}, block {member['block']}, document {member['document']}{likeness}"
            lines.append(f"  {place}\n    {member['text'][:SHOWN_CHARACTERS]!r}")
        drawn.append("\n".join(lines))
    return drawn


def describe_source(source: dict[str, Any]) -> str:
    """What was read of one source, and what of it was dropped."""
    read = f"{source['documents']:,} documents, {source['characters']:,} characters, {source['tokens']:,} tokens"
    drops = ", ".join(f"{n:,} {reason}" for reason, n in source["dropped"].items())
    return f"{read}; dropped: {drops}" if drops else read


def describe_sequences(settings: dict[str, Any]) -> str:
    """Kind and length, and the settings that belong to the kind."""
    others = [f"{name} {v}" for name, v in settings.items() if v is not None and name not in ("kind", "max_length")]
    return ", ".join([settings["kind"], f"up to {settings['max_length']} tokens", *others]).replace("_", " ")


def describe_masks(masking: dict[str, Any]) -> str:
    """Mode and rate, and what is not as usual."""
    words = [masking["mode"]]
    if masking["mode"] == "stored":
        words.append(f"{masking['views']} views")
    words.append(f"rate {masking['rate']:.0%}")
    if masking["rate"] == 0:
        words.append(f"held_out {masking['held_out_rate']:.0%}")
    if masking.get("unit") == "token":
        words.append("single tokens")
    if masking.get("smoothing") is not None:
        words.append(f"weights count^-{masking['smoothing']:g}")
    if masking.get("max_masked") is not None:
        words.append(f"at most {masking['max_masked']} a sequence")
    if masking.get("ngram") is not None:
        words.append(f"n-grams {'/'.join(f'{share:g}' for share in masking['ngram'])}")
    if masking.get("similar") is not None:
        words.append(f"similar words {masking['similar']['share']:.0%}, random {masking['random']:.0%}")
    if masking.get("replace") == "word":
        words.append("drawn per word")
    return ", ".join(words)
