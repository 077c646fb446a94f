from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder

SHAPE = EncoderConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
    hidden_act="gelu_new",
    hidden_dropout_prob=0.25,
    layer_norm_eps=1e-7,
)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def hugging_face() -> BertForMaskedLM:
    model = BertForMaskedLM(BertConfig(**SHAPE.kin.settings(SHAPE)))
    randomised(model)
    return model


def assert_same(encoder: Encoder, state: dict[str, torch.Tensor]) -> None:
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_round_trip_is_bitwise(tiny_corpus: Corpus, tmp_path: Path) -> None:
    shape = SHAPE.model_copy(update={"vocab_size": tiny_corpus.vocab_size})
    encoder = Encoder(shape)
    randomised(encoder)
    pretrained.save(encoder.state_dict(), shape, tiny_corpus.tokenizer_folder, tmp_path / "model")
    loaded = pretrained.load(str(tmp_path / "model"), "teacher")
    assert not loaded.missing_head
    assert loaded.encoder.config == shape
    assert_same(loaded.encoder, encoder.state_dict())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == tiny_corpus.vocab_size
    assert (tmp_path / "model" / "vocab.txt").is_file()


def test_a_folder_that_transformers_wrote(tmp_path: Path) -> None:
    model = hugging_face()
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(str(tmp_path), "teacher")
    assert_same(loaded.encoder, model.state_dict())
    assert not loaded.missing_head
    assert loaded.encoder.config == SHAPE


def test_sixteen_bit_weights_become_fp32(tmp_path: Path) -> None:
    model = hugging_face().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    encoder = pretrained.load(str(tmp_path), "teacher").encoder
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert_same(encoder, {name: value.float() for name, value in model.state_dict().items()})


def test_the_old_names_of_a_pytorch_model_bin(tmp_path: Path) -> None:
    model = hugging_face()
    model.config.save_pretrained(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.state_dict().items()
    }
    old["cls.seq_relationship.weight"] = torch.zeros(2, 16)
    old["bert.pooler.dense.weight"] = torch.zeros(16, 16)
    assert any(name.endswith("gamma") for name in old)
    torch.save(old, tmp_path / "pytorch_model.bin")
    loaded = pretrained.load(str(tmp_path), "teacher")
    assert_same(loaded.encoder, model.state_dict())
    assert not loaded.missing_head
    assert not loaded.encoder.config.pooler  # half of one is none


def test_a_missing_head_is_noted(tmp_path: Path) -> None:
    model = BertModel(BertConfig(**SHAPE.kin.settings(SHAPE)))
    randomised(model)
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(str(tmp_path), "teacher")
    assert loaded.missing_head
    state = {f"bert.{name}": value for name, value in model.state_dict().items()}
    for name, value in loaded.encoder.bert.state_dict().items():
        assert torch.equal(value, state[f"bert.{name}"])


def test_a_folder_without_weights(tmp_path: Path) -> None:
    BertConfig(**SHAPE.kin.settings(SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"teacher: .* holds no weights .* Download"):
        pretrained.load(str(tmp_path), "teacher")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config\.json; it is not a Hugging Face model folder"):
        pretrained.load(str(tmp_path), "teacher")
    with pytest.raises(DataError, match="there is no folder"):
        pretrained.load(str(tmp_path / "nowhere"), "teacher")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=20)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"is a 'gpt2' model; the families bert, distilbert, .* are supported"):
        pretrained.load(str(tmp_path), "teacher")


def test_a_shape_without_its_weights(tmp_path: Path) -> None:
    BertConfig(**SHAPE.kin.settings(SHAPE)).save_pretrained(tmp_path)
    assert pretrained.read_config(str(tmp_path), "teacher", weights=False) == SHAPE
    with pytest.raises(DataError, match="holds no weights"):
        pretrained.read_config(str(tmp_path), "teacher")


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    hugging_face().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"the weights of .* cannot be loaded"):
        pretrained.load(str(tmp_path), "teacher")


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    hugging_face().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"lacks weights of the encoder: bert\.encoder\.layer\.2"):
        pretrained.load(str(tmp_path), "teacher")
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(DataError, match="teacher"):
        pretrained.load(str(tmp_path), "teacher")


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    hugging_face().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="teacher"):
        pretrained.load(str(tmp_path), "teacher")


@pytest.mark.parametrize("change", [{"hidden_act": "silu"}, {"position_embedding_type": "relative_key"}])
def test_a_bert_that_we_cannot_compute(tmp_path: Path, change: dict[str, str]) -> None:
    hugging_face().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=next(iter(change.values()))):
        pretrained.load(str(tmp_path), "teacher")


def test_a_shape_that_cannot_be(tmp_path: Path) -> None:
    hugging_face().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(DataError, match=r"teacher: .* hidden_size 16 is not divisible"):
        pretrained.load(str(tmp_path), "teacher")


def test_a_pytorch_model_bin_that_is_no_pickle(tmp_path: Path) -> None:
    BertConfig(**SHAPE.kin.settings(SHAPE)).save_pretrained(tmp_path)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"the weights of .* cannot be loaded"):
            pretrained.load(str(tmp_path), "teacher")


def test_saving_an_incomplete_state(tiny_corpus: Corpus, tmp_path: Path) -> None:
    state = Encoder(SHAPE).state_dict()
    del state["bert.embeddings.LayerNorm.weight"]
    with pytest.raises(DataError, match=r"bert\.embeddings\.LayerNorm\.weight"):
        pretrained.save(state, SHAPE, tiny_corpus.tokenizer_folder, tmp_path / "model")
