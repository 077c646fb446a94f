"""Slow scores of transformers' own model, one sentence and one token at a time: what ours are compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder

WORDS = ["zij", "hij", "Zij", "Hij", "is", "arts", "kok", "werkt", "als", "dokter", "##es", "die", "dat", "man", "."]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def log_probability(model: Any, ids: list[int], place: int, mask_id: int, hide: Sequence[int] = ()) -> float:
    """log P(ids[place]) with it and the places of ``hide`` masked; one sequence a forward pass."""
    masked = [mask_id if i == place or i in hide else token for i, token in enumerate(ids)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([masked])).logits[0, place].double()
    return float(logits.log_softmax(-1)[ids[place]])


def model_folder(folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    """A small random BERT, or RoBERTa where the tokenizer (of transformers) has its tokens, as from elsewhere."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 34,
        "initializer_range": 0.4,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if tokenizer.mask_token == "<mask>":
        model: Any = RobertaForMaskedLM(RobertaConfig(**shape, type_vocab_size=1))
    else:
        model = BertForMaskedLM(BertConfig(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def wordpiece(folder: Path, words: list[str] = WORDS) -> Any:
    """A cased WordPiece tokenizer with the given words."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=False)


def byte_level(folder: Path) -> Any:
    """A byte-level BPE tokenizer with RoBERTa's special tokens, trained on a few sentences."""
    from transformers import PreTrainedTokenizerFast

    specials = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ["Zij is arts en hij is kok.", "Hij werkt als arts, zij werkt als kok.", "Vroeger was zij dokter, hij ook."]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(specials.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(text * 10, trainer)
    ends = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {f"{part}_token": name for part, name in specials.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, cls_token="<s>", sep_token="</s>")


def both(folder: Path) -> tuple[Encoder, Any, Any]:
    """(our encoder, transformers' model, tokenizer) of one folder."""
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    return pretrained.load(str(folder), "test").encoder, theirs, AutoTokenizer.from_pretrained(folder)


def tiny_encoder(vocab_size: int, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(
        EncoderConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
        )
    )


def write_lines(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path
