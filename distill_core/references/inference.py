"""A student with references at work: find the reference, load its vectors, run the student. No teacher runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import DataError
from distill_core.batch import Batch
from distill_core.evaluate.fill_mask import load_tokenizer
from distill_core.features import FeatureRequest, Features
from distill_core.models import pretrained
from distill_core.models.attention import layout
from distill_core.references.retrieve import Bm25Index
from distill_core.references.store import ReferenceStore
from distill_core.references.texts import Texts, one_stream
from distill_core.references.weights import FOLDER, has_extra, load_extra
from distill_core.tasks import pretrained as task_models
from distill_core.tasks.model import StageModel, TaskModel

Ints = NDArray[np.int64]


@dataclass
class ReferencedModel:
    """``model`` in eval mode (on the CPU, or where it is moved to), with the index and the store of its references.

    A text's own exact duplicate is never its reference, as in training.
    """

    model: StageModel
    index: Bm25Index
    store: ReferenceStore
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path | str, made: Path | None = None) -> ReferencedModel:
        """From an export (or from STAGE/model, with ``made`` = STAGE/references).

        Raises:
            DataError: it is no student with references, or a part of it is damaged.
        """
        folder = Path(folder)
        if not has_extra(folder):
            raise DataError(f"{folder} is not a student with references: it has no {FOLDER}/. Load it as a plain one.")
        if task_models.task_kind_of(str(folder)) is None:
            plain: StageModel = pretrained.load(str(folder), "references").encoder
        else:
            plain = task_models.load_as_is(str(folder), "references")
        parts = folder / FOLDER if made is None else made
        index, store = Bm25Index.open(parts / "index"), ReferenceStore.open(parts / "store")
        if not np.array_equal(index.hashes, store.hashes):
            raise DataError(f"{parts}: index and store are of different texts. Copy or export the model again.")
        tokenizer = load_tokenizer(folder, plain.config.vocab_size)
        return cls(load_extra(plain, folder).eval(), index, store, tokenizer)

    def texts(self, sentences: Sequence[str | tuple[str, str]]) -> Texts:
        """Token ids of texts or pairs of texts, with special tokens, cut to the model's positions."""
        ids, types = [], []
        for sentence in sentences:
            pair = (sentence,) if isinstance(sentence, str) else sentence
            found = self.tokenizer(*pair, truncation=True, max_length=self.model.config.max_length)
            ids.append(found["input_ids"])
            types += found.get("token_type_ids", [0] * len(found["input_ids"]))
        return replace(one_stream(ids), types=np.array(types, np.int64))

    def batch(self, texts: Texts, references: bool = True) -> Batch:
        """The texts as a batch (on the CPU), in their order, with their references."""
        lengths = np.diff(texts.offsets)
        positions = np.arange(len(texts.ids)) - np.repeat(texts.offsets[:-1], lengths)
        types = torch.from_numpy(texts.types) if texts.types.any() else None
        where = layout(lengths.tolist(), "runs")
        batch = Batch(torch.from_numpy(texts.ids), torch.from_numpy(positions), where, types)
        return replace(batch, references=self.store.references(self.index.search(texts)[0])) if references else batch

    @torch.no_grad()
    def __call__(
        self, sentences: Sequence[str | tuple[str, str]], request: FeatureRequest | None = None, references: bool = True
    ) -> Features:
        """What is asked for (default: the answers to the model's task, or vocabulary logits of all tokens).

        ``references: False``: as the plain student.
        """
        default = FeatureRequest(task=True) if isinstance(self.model, TaskModel) else _ALL
        batch = self.batch(self.texts(sentences), references).to(next(self.model.parameters()).device)
        found: Features = self.model(batch, request or default)
        return found


_ALL = FeatureRequest(logits=frozenset({"all"}))
