"""BERT and what is the same: the whole-word-masking models (also those called RoBERTa-wwm), MacBERT, MiniRBT."""

from distill_core.models.families.base import FAMILIES, Family

FAMILIES.add("bert")(Family(masked_lm="BertForMaskedLM", base="BertModel"))
