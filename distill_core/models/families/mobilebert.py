"""MobileBERT (arXiv 2004.02984): bottleneck layers, trigram embeddings, and a head that widens the embeddings.

Texts are embedded as they are, with zeros beyond both ends. (`transformers` lets the last token of a shorter
sequence of a padded batch see the padding's embedding.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_core.models.families.base import FAMILIES, Family

if TYPE_CHECKING:
    from distill_core.models.config import EncoderConfig


class MobileBert(Family):
    def read(self, theirs: Any) -> dict[str, Any]:
        narrow = theirs.embedding_size != theirs.hidden_size
        return {
            **super().read(theirs),
            "embedding_size": theirs.embedding_size if narrow else None,
            "norm": theirs.normalization_type,
            "bottleneck": {
                "intra_size": theirs.intra_bottleneck_size,
                "feed_forwards": theirs.num_feedforward_networks,
                "shared_query_key": not theirs.use_bottleneck_attention,
                "trigram": theirs.trigram_input,
            },
        }

    def settings(self, shape: EncoderConfig) -> dict[str, Any]:
        assert shape.bottleneck is not None
        return {
            **super().settings(shape),
            "embedding_size": shape.word_size,
            "normalization_type": shape.norm,
            "intra_bottleneck_size": shape.bottleneck.intra_size,
            "num_feedforward_networks": shape.bottleneck.feed_forwards,
            "use_bottleneck_attention": not shape.bottleneck.shared_query_key,
            "key_query_shared_bottleneck": shape.bottleneck.shared_query_key,
            "trigram_input": shape.bottleneck.trigram,
        }

    def refusal(self, theirs: Any) -> str | None:
        if not theirs.use_bottleneck:
            return "use_bottleneck: false"
        if not (theirs.use_bottleneck_attention or theirs.key_query_shared_bottleneck):
            return "queries and keys that come from no bottleneck"
        if not theirs.classifier_activation:
            return "classifier_activation: false (a pooler without weights)"
        return None

    def problem(self, shape: EncoderConfig) -> str | None:
        found = super().problem(shape)
        if found is None and shape.bottleneck is not None and not shape.bottleneck.trigram and not shape.embedding_size:
            return "neither trigram embeddings nor an embedding_size; give one of them"
        return found


FAMILIES.add("mobilebert")(
    MobileBert(
        masked_lm="MobileBertForMaskedLM",
        base="MobileBertModel",
        renames=(("bert.", "mobilebert."),),
        defaults={"hidden_act": "relu", "norm": "no_norm", "embedding_size": 128, "bottleneck": {}},
        embedding_size=True,
        bottleneck=True,
        keys=(
            "embedding_size",
            "normalization_type",
            "intra_bottleneck_size",
            "num_feedforward_networks",
            "use_bottleneck",
            "use_bottleneck_attention",
            "key_query_shared_bottleneck",
            "trigram_input",
            "classifier_activation",
        ),
    )
)
