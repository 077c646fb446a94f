"""RoBERTa (arXiv 1907.11692): positions begin after the padding's id, one token type, its own names of the head."""

from distill_core.models.families.base import FAMILIES, Family

FAMILIES.add("roberta")(
    Family(
        masked_lm="RobertaForMaskedLM",
        base="RobertaModel",
        renames=(
            ("bert.", "roberta."),
            ("cls.predictions.transform.dense", "lm_head.dense"),
            ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
            ("cls.predictions.bias", "lm_head.bias"),
        ),
        tied=("lm_head.decoder.weight", "lm_head.decoder.bias"),
        # 512 positions and two rows that are never used: those of the ids up to the padding's.
        defaults={"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 514, "pad_token_id": 1},
        positions_after_pad=True,
        head_act="gelu",
    )
)
