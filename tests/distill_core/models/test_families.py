"""Every family against its class in transformers: names, logits, hidden states, there and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from configs.errors import DataError
from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models import pretrained
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # transformers' MobileBERT head

LENGTHS = [11, 7, 7, 3, 1]
V = 61
COMMON: dict[str, Any] = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON |= {"intermediate_size": 40, "max_position_embeddings": 16}
NARROW: dict[str, Any] = {"embedding_size": 10, "intra_bottleneck_size": 12, "num_feedforward_networks": 3}
INVERTED: dict[str, Any] = {"intra_bottleneck_size": 32, "use_bottleneck_attention": True, "trigram_input": False}
DISTIL: dict[str, Any] = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 16}

# (model_type, arguments of its configuration in transformers)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", COMMON),
    "roberta": ("roberta", COMMON | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "roberta that pads with 3": ("roberta", COMMON | {"type_vocab_size": 2, "pad_token_id": 3, "hidden_act": "relu"}),
    "distilbert": ("distilbert", DISTIL | {"vocab_size": V, "activation": "gelu"}),
    "distilbert with relu": ("distilbert", DISTIL | {"vocab_size": V, "activation": "relu"}),
    "electra": ("electra", COMMON | {"embedding_size": 24}),
    "narrow electra": ("electra", COMMON | {"embedding_size": 10, "hidden_act": "relu"}),
    "ernie": ("ernie", COMMON | {"type_vocab_size": 4}),
    "ernie with task types": ("ernie", COMMON | {"use_task_id": True, "hidden_act": "relu"}),
    "mobilebert": ("mobilebert", COMMON | NARROW),
    "mobilebert with LayerNorm": ("mobilebert", COMMON | NARROW | {"normalization_type": "layer_norm"}),
    "one feed-forward network": ("mobilebert", COMMON | NARROW | {"num_feedforward_networks": 1}),
    "an embedding as wide as the layers": ("mobilebert", COMMON | NARROW | {"embedding_size": 24}),
    "inverted bottleneck": ("mobilebert", COMMON | NARROW | INVERTED | {"normalization_type": "layer_norm"}),
}


def theirs(name: str, kind: str = "masked_lm") -> Any:
    """A model of transformers with every weight away from its default."""
    family, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, getattr(FAMILIES[family], kind))(AutoConfig.for_model(family, **settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def sequences(seed: int = 1) -> list[list[int]]:
    """Without the first ids, which are the paddings'."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, V, (length,), generator=draw).tolist() for length in LENGTHS]


@torch.no_grad()
def outputs(model: Any, texts: list[list[int]], **more: Tensor) -> Any:
    """One text after another, unpadded (MobileBERT's last token would see the padding): hidden states and logits."""
    found = [model(input_ids=torch.tensor([text]), output_hidden_states=True, **more) for text in texts]
    states = zip(*(f.hidden_states for f in found), strict=True)
    return [torch.cat(state, 1)[0] for state in states], torch.cat([f.logits for f in found], 1)[0]


EVERYTHING = FeatureRequest(hidden=frozenset(range(4)), logits=frozenset({"all"}))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(MODELS))
def test_loaded_from_transformers_it_computes_the_same(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(str(tmp_path), "teacher")
    assert not loaded.missing_head
    assert loaded.encoder.config == pretrained.read_config(str(tmp_path), "teacher")
    assert loaded.encoder.config.family == MODELS[name][0]
    hidden, logits = outputs(model, sequences())
    for kernel in ("runs", "padded"):
        with torch.no_grad():
            found = loaded.encoder.eval()(Batch.of(sequences(), kernel), EVERYTHING)  # type: ignore[arg-type]
        assert_close(found.logits["all"], logits)
        for index, expected in enumerate(hidden):
            assert_close(found.hidden[index], expected)


@pytest.mark.parametrize("name", [n for n, (family, _) in MODELS.items() if family != "mobilebert"])
def test_padding_in_transformers_changes_nothing(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path)
    encoder = pretrained.load(str(tmp_path), "teacher").encoder.eval()
    texts, longest = sequences(), max(LENGTHS)
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    ids = torch.tensor([text + [model.config.pad_token_id] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).logits[mask]
        assert_close(encoder(Batch.of(texts), EVERYTHING).logits["all"], expected)


def shape_of(name: str, **changes: Any) -> EncoderConfig:
    family, settings = MODELS[name]
    read = FAMILIES[family].read(AutoConfig.for_model(family, **settings))
    return EncoderConfig.model_validate({"family": family, **read, **changes})


def randomised(shape: EncoderConfig) -> Encoder:
    torch.manual_seed(1)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("pooler", [False, True])
def test_saved_and_loaded_by_transformers_it_computes_the_same(name: str, pooler: bool, tmp_path: Path) -> None:
    if pooler and not FAMILIES[MODELS[name][0]].pooler:
        with pytest.raises(ValueError, match="pooler: true, but"):
            shape_of(name, pooler=True)
        return
    shape = shape_of(name, pooler=pooler)
    ours = randomised(shape)
    pretrained.save(ours.state_dict(), shape, tmp_path / "none", tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["architectures"] == [shape.kin.masked_lm] and written["model_type"] == shape.family
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    assert type(model).__name__ == shape.kin.masked_lm
    hidden, logits = outputs(model, sequences())
    with torch.no_grad():
        found = ours(Batch.of(sequences()), EVERYTHING)
    assert_close(found.logits["all"], logits)
    for index, expected in enumerate(hidden):
        assert_close(found.hidden[index], expected)
    again = pretrained.load(str(tmp_path / "model"), "again").encoder
    assert again.config == shape
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", [name for name, (family, _) in MODELS.items() if FAMILIES[family].pooler])
def test_the_pooler_there_and_back(name: str, tmp_path: Path) -> None:
    base = theirs(name, "base")
    base.save_pretrained(tmp_path / "theirs")
    loaded = pretrained.load(str(tmp_path / "theirs"), "teacher")
    assert loaded.missing_head and loaded.encoder.config.pooler
    pretrained.save(loaded.encoder.state_dict(), loaded.encoder.config, tmp_path / "none", tmp_path / "ours")
    saved = AutoModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        found = loaded.encoder.eval()(Batch.of(sequences()), FeatureRequest(pooled=True)).pooled
        for model in (base, saved):
            expected = torch.cat([model(input_ids=torch.tensor([text])).pooler_output for text in sequences()])
            assert found is not None
            assert_close(found, expected)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "distilbert with relu"])
def test_types_that_the_model_has_not_change_nothing(name: str) -> None:
    ours = randomised(shape_of(name))
    batch = Batch.of(sequences())
    plain = ours(batch, EVERYTHING).logits["all"]
    batch.types = torch.arange(batch.n_tokens) % 2
    assert torch.equal(ours(batch, EVERYTHING).logits["all"], plain)


def test_an_electra_discriminator_has_no_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = COMMON | {"embedding_size": 10}
    model = transformers.ElectraForPreTraining(transformers.ElectraConfig(**settings)).eval()
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(str(tmp_path), "teacher")
    assert loaded.missing_head and not loaded.encoder.config.pooler
    with torch.no_grad():
        found = loaded.encoder.eval()(Batch.of(sequences()), FeatureRequest(hidden=frozenset({3}))).hidden[3]
        expected = [model.electra(input_ids=torch.tensor([text])).last_hidden_state[0] for text in sequences()]
    assert_close(found, torch.cat(expected))


def test_heads_of_a_bottleneck_are_narrow() -> None:
    ours = randomised(shape_of("mobilebert"))
    heads = ours(Batch.of(sequences()), FeatureRequest(heads=frozenset({1, 3}))).heads
    assert {tuple(t.shape) for three in heads.values() for t in three} == {(sum(LENGTHS), 4, 3)}


def test_gradients_reach_every_weight_of_a_bottleneck_student() -> None:
    ours = randomised(shape_of("mobilebert", pooler=True)).train()
    found = ours(Batch.of(sequences()), EVERYTHING | FeatureRequest(pooled=True))
    assert found.pooled is not None
    (found.logits["all"].square().sum() + found.pooled.sum()).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("mobilebert", {"use_bottleneck": False}, "use_bottleneck: false"),
        ("mobilebert", {"key_query_shared_bottleneck": False}, "queries and keys that come from no bottleneck"),
        ("mobilebert", {"classifier_activation": False}, "classifier_activation: false"),
        ("roberta", {"is_decoder": True}, "is a decoder"),
        ("roberta", {"tie_word_embeddings": False}, "a masked-LM decoder of its own"),
        ("distilbert", {"activation": "silu"}, "hidden_act 'silu'"),
    ],
)
def test_variants_that_we_cannot_compute(family: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    theirs(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=f"teacher: .*{message}"):
        pretrained.load(str(tmp_path), "teacher")
