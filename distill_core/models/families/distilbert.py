"""DistilBERT (arXiv 1910.01108): BERT without token types and pooler."""

from distill_core.models.families.base import FAMILIES, Family

FAMILIES.add("distilbert")(
    Family(
        masked_lm="DistilBertForMaskedLM",
        base="DistilBertModel",
        renames=(
            ("bert.encoder.layer.", "distilbert.transformer.layer."),
            ("bert.embeddings.", "distilbert.embeddings."),
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
            ("cls.predictions.transform.dense", "vocab_transform"),
            ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
            ("cls.predictions.bias", "vocab_projector.bias"),
        ),
        tied=("vocab_projector.weight",),
        fields={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        pooler=False,
        token_types=False,
        layer_norm_eps=1e-12,
    )
)
