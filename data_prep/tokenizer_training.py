"""Vocabularies trained on the corpus; the same corpus and settings give the same bytes."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from configs.errors import DataError
from data_prep.config import TokenizerConfig
from data_prep.sentencepiece_model import library_sentencepiece
from data_prep.sentences import sentences
from data_prep.tokenizer_base import SPECIALS, library
from data_prep.tokenizer_bpe import BPE_SPECIALS, BpeTokenizer
from data_prep.tokenizer_sentencepiece import SentencePieceTokenizer
from data_prep.tokenizer_wordpiece import WordPieceTokenizer
from data_prep.wordpiece_letters import HAN

_HAN = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in HAN) + "]+")
_SENTENCE_BYTES = 1 << 16
"""`sentencepiece` leaves out longer sentences; longer ones are cut before."""
_CUT = _SENTENCE_BYTES // 4
# The result of `sentencepiece` depends on the number of threads (the order in which floats are added),
# hence a fixed one.
_THREADS = 2
_COVERAGE = 0.9995


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """``texts`` up to ``limit`` characters together; the last one is cut."""
    left = limit
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def train_wordpiece(texts: Iterable[str], config: TokenizerConfig) -> WordPieceTokenizer:
    """A WordPiece vocabulary of at most ``config.vocab_size`` entries.

    In the order of ids: the special entries; all characters seen at least twice (of them the most frequent
    if the size does not allow for all); their ``##`` forms where they occur inside words; and pieces of
    words of other scripts than Chinese, merged by `tokenizers`' trainer.

    Raises:
        DataError: the corpus is too small for any vocabulary.
    """
    characters, inner, words = _count_words(texts, config.lowercase)
    room = config.vocab_size - len(SPECIALS)
    singles = _most_frequent(characters, room)
    kept = set(singles)
    room -= len(singles)
    continued = [f"##{c}" for c in _most_frequent({c: n for c, n in inner.items() if c in kept}, room)]
    room -= len(continued)
    merged = _merge(words, kept, continued, room) if room > 0 else []
    pieces = [*SPECIALS.values(), *singles, *continued, *merged]
    _refuse_tiny(len(pieces))
    return WordPieceTokenizer(pieces, "the trained vocabulary", lowercase=config.lowercase)


def _most_frequent(counts: dict[str, int], n: int) -> list[str]:
    """The ``n`` most frequent of those seen at least twice, in the order of their code points."""
    often = sorted((c for c in counts if counts[c] >= 2), key=lambda c: (-counts[c], c))
    return sorted(often[: max(0, n)])


def _count_words(texts: Iterable[str], lowercase: bool) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Occurrences of single characters, of characters inside words, and of words that are not Chinese."""
    tokenizers = library()
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        text = normalizer.normalize_str(text)
        characters.update(text)
        for line in _HAN.sub(" ", text).split("\n"):
            words.update(word for word, _ in splitter.pre_tokenize_str(line))
    for space in [c for c in characters if c.isspace()]:
        del characters[space]
    inner: Counter[str] = Counter()
    for word, n in words.items():
        if len(word) > 1:
            for character in word[1:]:
                inner[character] += n
    return characters, inner, words


def _merge(words: Counter[str], kept: set[str], continued: list[str], room: int) -> list[str]:
    """Up to ``room`` pieces of more than one character, in the order in which they were merged.

    The trainer gives ids to ``##`` characters in the order of a hash table that differs in every process,
    and breaks ties between equally frequent merges by id. All of them are therefore announced beforehand,
    in a fixed order, as its special tokens.
    """
    tokenizers = library()
    alphabet = [*sorted(kept), *continued]
    inner = {piece[2:] for piece in continued}
    usable = {
        word: n
        for word, n in words.items()
        if len(word) > 1 and n > 1 and word[0] in kept and inner.issuperset(word[1:])
    }
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=len(alphabet) + room,
        min_frequency=2,
        limit_alphabet=0x110000,
        special_tokens=alphabet,
        show_progress=False,
    )
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece({}, unk_token=SPECIALS["unk"]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.train_from_iterator(_repeated(usable), trainer)
    ids = model.get_vocab()
    known = set(alphabet)
    return sorted((piece for piece in ids if piece not in known), key=ids.__getitem__)[:room]


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Each word as often as it was seen, in pieces of bounded size."""
    for word in sorted(words):
        n = words[word]
        at_once = max(1, 4096 // len(word))
        for done in range(0, n, at_once):
            yield " ".join([word] * min(at_once, n - done))


def train_sentencepiece(texts: Iterable[str], config: TokenizerConfig) -> SentencePieceTokenizer:
    """A model of ``config.algorithm`` with at most ``config.vocab_size`` pieces, ids 0 to 4 special, no normalisation.

    Sentences get no space in front, as Chinese has none.

    Raises:
        DataError: the corpus is too small for any vocabulary, or `sentencepiece` is not installed.
    """
    package = library_sentencepiece()
    lines = [
        line[start : start + _CUT]
        for text in texts
        for line in sentences(text.replace("\0", ""))
        for start in range(0, len(line), _CUT)
    ]
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    _refuse_tiny(len(SPECIALS) + len(counts))
    lines = _without_rare(lines, counts, config.vocab_size)
    content = io.BytesIO()
    try:
        package.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=content,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=SPECIALS["pad"],
            unk_piece=SPECIALS["unk"],
            control_symbols=[SPECIALS["cls"], SPECIALS["sep"], SPECIALS["mask"]],
            max_sentence_length=_SENTENCE_BYTES,
            shuffle_input_sentence=False,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"`sentencepiece` could not train a vocabulary of {config.vocab_size} pieces: "
            f"{' '.join(str(error).split())[:300]}. "
            "Give it more text, or another `data.tokenizer.vocab_size`."
        ) from None
    return SentencePieceTokenizer(content.getvalue(), "the trained model")


def train_bpe(texts: Iterable[str], config: TokenizerConfig) -> BpeTokenizer:
    """A byte-level BPE vocabulary of at most ``config.vocab_size`` entries, as RoBERTa's is made.

    In the order of ids: <s>, <pad>, </s>, <unk>, <mask>; the 256 bytes; what was merged from pairs seen at least
    twice. Ties between equally frequent pairs are broken by ids, so the result depends on the text alone.

    Raises:
        DataError: the corpus is too small for any vocabulary.
    """
    tokenizers = library()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[BPE_SPECIALS[part] for part in ("cls", "pad", "sep", "unk", "mask")],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    model = json.loads(trained.to_str())["model"]
    if not model["merges"]:
        _refuse_tiny(0)  # beyond the bytes, which every vocabulary has
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return BpeTokenizer(pieces, [(a, b) for a, b in model["merges"]], BPE_SPECIALS, "the trained vocabulary")


def _without_rare(lines: list[str], counts: Counter[str], vocab_size: int) -> list[str]:
    """``lines`` cut at the characters that are too rare to become a piece by themselves.

    Those are the last 0.05 % of the text, and what would fill more than 3/4 of the vocabulary.
    `sentencepiece` has a setting for the former, but refuses to leave out more than 2 % of the text.
    """
    most = (vocab_size - len(SPECIALS)) * 3 // 4
    left = (1 - _COVERAGE) * counts.total()
    ordered = sorted(counts, key=lambda c: (counts[c], c))
    rare = set(ordered[: max(0, len(ordered) - most)])
    for character in ordered:
        left -= counts[character]
        if left < 0:
            break
        rare.add(character)
    if not rare:
        return lines
    cut = re.compile(f"[{re.escape(''.join(sorted(rare)))}]+")
    return [part for line in lines for part in cut.split(line) if part]


def _refuse_tiny(entries: int) -> None:
    if entries < 20:
        raise DataError(
            f"The corpus gives a vocabulary of only {entries} entries, too few to train on. Check that "
            "`data.sources` names the right files and `text_column`, or give a `data.tokenizer.vocab`."
        )
