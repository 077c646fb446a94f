"""Dutch and English sentences, and a byte-level BPE tokenizer trained on them and on Chinese ones."""

from __future__ import annotations

from typing import Any

from data_prep.tokenizer_base import Tokenizer
from data_prep.tokenizer_bpe import BPE_SPECIALS, BpeTokenizer
from data_prep.tokenizer_training import train_bpe
from tests.data_prep.awkward import SAMPLE_LINES, config

DUTCH = [
    "De fietser reed langzaam over de natte brug. Zij keek om! Was de regen al voorbij?",
    "Het café op de hoek schenkt koffie én thee, maar alleen 's middags vóór vier uur.",
    "Mijn buurvrouw is timmerman; haar zus werkt als verpleegkundige in het ziekenhuis.",
    'Foto\'s van auto-ongelukken wil hij niet zien: "Weg ermee!" riep hij. Toen werd het stil.',
    "In 1953 braken de dijken, en 72.000 mensen moesten hun huizen verlaten… Dat was erg.",
]
ENGLISH = [
    "The cyclist rode slowly across the wet bridge. She looked back! Had the rain stopped?",
    "Our neighbour doesn't like coffee, but she'll drink tea (green tea) at 4 o'clock.",
    "Naïve readers may think that café and cafe are one word; they aren't, are they?",
]
MIXED = [*DUTCH, *ENGLISH, *SAMPLE_LINES[:60], *(f"Wij lezen {line[:20]} samen." for line in SAMPLE_LINES[:20])]
TEXTS = MIXED * 2


def bpe(**keys: Any) -> Any:
    return config(kind="bpe", **keys)


_SHARED: list[BpeTokenizer] = []


def shared(prefix: bool = False) -> BpeTokenizer:
    """Trained on TEXTS, with or without a space in front of each sentence."""
    if not _SHARED:
        one = train_bpe(TEXTS, bpe(vocab_size=900))
        _SHARED.extend([one, BpeTokenizer(one.pieces, one.merges, one.specials, "test", add_prefix_space=True)])
    return _SHARED[prefix]


def byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it is visible in Latin-1, else the next one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


LETTERS = byte_letters()


def bytes_of(tokenizer: Tokenizer, found: Any) -> bytes:
    return bytes(LETTERS[letter] for i in found for letter in tokenizer.decode_token(int(i)))


def only_bytes() -> BpeTokenizer:
    """Every byte is a token."""
    return BpeTokenizer([*BPE_SPECIALS.values(), *LETTERS], [], BPE_SPECIALS, "test")
