"""An encoder with a task's head on top, as Hugging Face's task classes have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_core.batch import Batch
from distill_core.features import FeatureRequest, Features
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.tasks.rows import TaskKind

SEQUENCE_KINDS = ("classification", "regression")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class SequenceHead:
    """What a family's ``...ForSequenceClassification`` does with the first token: two linear layers."""

    dense: str
    activation: str
    out: str


HEADS = {
    "bert": SequenceHead("bert.pooler.dense", "tanh", "classifier"),
    "ernie": SequenceHead("ernie.pooler.dense", "tanh", "classifier"),
    "mobilebert": SequenceHead("mobilebert.pooler.dense", "tanh", "classifier"),
    "roberta": SequenceHead("classifier.dense", "tanh", "classifier.out_proj"),
    "electra": SequenceHead("classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": SequenceHead("pre_classifier", "relu", "classifier"),
}


class TaskModel(nn.Module):
    """The encoder without its masked-LM head, and the head of a task.

    Classification and regression: dropout(activation(dense(first token))) -> linear; ``dense`` begins as the
    encoder's pooler where it has one. Tokens and spans: dropout(last hidden state) -> linear. ``Features.task``:
    [B, C] (regression: C = 1), [N, C], or [N, 2] for the logits of an answer's first and last token.

    TinyBERT's own classes put a ReLU between pooler and classifier, which no class of Hugging Face has; it is left
    out, so that every trained model loads in ``transformers``.
    """

    def __init__(self, encoder: Encoder, kind: TaskKind, labels: list[str]) -> None:
        super().__init__()
        self.kind = kind
        self.labels = labels
        self.encoder = encoder
        shape = encoder.config
        self.dense: nn.Linear | None = None
        if kind in SEQUENCE_KINDS:
            pooler = encoder.bert.pooler.dense if shape.pooler else None
            assert pooler is None or isinstance(pooler, nn.Linear)
            self.dense = pooler or _linear(shape.hidden_size, shape.hidden_size, shape.initializer_range)
        if shape.pooler:
            del encoder.bert.pooler
            encoder.config = shape.model_copy(update={"pooler": False})
        del encoder.cls
        outputs = {"regression": 1, "span": 2}.get(kind, len(labels))
        self.dropout = nn.Dropout(shape.hidden_dropout_prob)
        self.classifier = _linear(shape.hidden_size, outputs, shape.initializer_range)
        self.activation = ACTIVATIONS[HEADS[shape.family].activation]

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, batch: Batch, request: FeatureRequest) -> Features:
        if not request.task:
            return self.encoder(batch, request)  # type: ignore[no-any-return]
        last = self.config.num_hidden_layers
        needed = replace(request, task=False, hidden=request.hidden | {last})
        features: Features = self.encoder(batch, needed)
        x = features.hidden[last]
        if self.dense is not None:
            x = self.activation(self.dense(x[batch.layout.starts]))
        features.task = self.classifier(self.dropout(x))
        return features


StageModel = Encoder | TaskModel
"""What a stage trains or learns from."""


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear
