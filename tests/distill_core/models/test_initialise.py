from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.config import InitConfig
from distill_core.features import FeatureRequest
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.initialise import check_init, check_layers, copy_teacher_layers, initialise, load_into
from distill_core.models.pretrained import Pretrained


def shape(layers: int, **changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2}
    fields |= {"intermediate_size": 12, "max_position_embeddings": 10, "num_hidden_layers": layers}
    return EncoderConfig(**(fields | changes))


MOBILE: dict[str, Any] = {"family": "mobilebert", "bottleneck": {"intra_size": 4}}


def randomised(config: EncoderConfig, seed: int) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    return encoder


@pytest.mark.parametrize("embeddings", [True, False])
def test_copies_just_what_is_asked(embeddings: bool) -> None:
    teacher, student = randomised(shape(4), 0), randomised(shape(2), 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    copy_teacher_layers(student, teacher, [1, 3], embeddings)
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        if ".layer.0." in name or ".layer.1." in name:
            source = name.replace(".layer.1.", ".layer.3.").replace(".layer.0.", ".layer.1.")
            assert torch.equal(value, theirs[source]), name
        elif name.startswith("bert.embeddings"):
            assert torch.equal(value, theirs[name] if embeddings else before[name]), name
        else:  # the masked-LM head stays random
            assert torch.equal(value, before[name]), name


def test_the_copy_is_the_students_own() -> None:
    teacher, student = randomised(shape(2), 0), randomised(shape(2), 1)
    copy_teacher_layers(student, teacher, [0, 1], embeddings=True)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_fewer_positions_take_the_first_rows() -> None:
    teacher, student = randomised(shape(2), 0), randomised(shape(2, max_position_embeddings=6), 1)
    copy_teacher_layers(student, teacher, [0, 1], embeddings=True)
    rows = student.bert.embeddings.position_embeddings.weight
    assert torch.equal(rows, teacher.bert.embeddings.position_embeddings.weight[:6])


def test_a_random_student_has_berts_initialisation() -> None:
    torch.manual_seed(0)
    encoder = Encoder(shape(2, hidden_size=64, intermediate_size=256, vocab_size=2000))
    for name, parameter in encoder.named_parameters():
        if "LayerNorm.weight" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002


@pytest.mark.parametrize(
    ("layers", "student", "message"),
    [
        ([0, 1], shape(3), r"names 2 teacher layers, but the student has 3"),
        ([0, 4], shape(2), r"teacher layer 4, but the teacher's layers are 0 to 3 \(0-based\)"),
        ([-1, 0], shape(2), r"teacher layer -1"),
        ([0, 1], shape(2, hidden_size=16), r"between equal widths; the student has hidden_size 16"),
        ([0, 1], shape(2, intermediate_size=16), r"intermediate_size 16, the teacher 8 and 12"),
        ([0, 1], shape(2, num_attention_heads=4), r"the student has 4 attention heads, the teacher 2"),
        ([0, 1], shape(2, **MOBILE), r"the student \(mobilebert\) and the teacher \(bert\) differ"),
    ],
)
def test_layers_that_cannot_be_copied(layers: list[int], student: EncoderConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"stage 'x': .*{message}"):
        check_layers(layers, student, shape(4), "stage 'x'")


def test_layers_that_can() -> None:
    check_layers([0, 2, 3], shape(3), shape(4), "stage 'x'")
    check_layers("top", shape(3), shape(4), "stage 'x'")


# ---------------------------------------------------------------- families, head, rules


def logits(encoder: Encoder) -> torch.Tensor:
    with torch.no_grad():
        batch = Batch.of([[5, 6, 7, 8], [9, 10], [11]])
        return encoder.eval()(batch, FeatureRequest(logits=frozenset({"all"}))).logits["all"]


FAMILY: dict[str, dict[str, Any]] = {
    "bert": {},
    "one type": {"type_vocab_size": 1},
    "distilbert": {"family": "distilbert", "type_vocab_size": 0},
    "roberta": {"family": "roberta", "type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 12},
    "late roberta": {"family": "roberta", "type_vocab_size": 2, "pad_token_id": 3, "max_position_embeddings": 14},
    "ernie": {"family": "ernie", "type_vocab_size": 4},
    "electra": {"family": "electra"},
}


@pytest.mark.parametrize("student", FAMILY)
@pytest.mark.parametrize("teacher", FAMILY)
def test_all_layers_and_the_head_make_the_teacher_whatever_the_family(teacher: str, student: str) -> None:
    theirs, ours = randomised(shape(3, **FAMILY[teacher]), 0), randomised(shape(3, **FAMILY[student]), 1)
    init = InitConfig(kind="teacher_layers", layers="uniform", head=True)
    assert initialise(ours, init, theirs, "x") == [0, 1, 2]
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-5)


def test_more_token_types_than_the_teacher_has_are_its_first() -> None:
    teacher, student = randomised(shape(2, type_vocab_size=1), 0), randomised(shape(2), 1)
    copy_teacher_layers(student, teacher, [0, 1], embeddings=True)
    types = student.bert.embeddings.token_type_embeddings.weight
    assert torch.equal(types, teacher.bert.embeddings.token_type_embeddings.weight.expand(2, -1))


@pytest.mark.parametrize("head", [True, False])
def test_the_head_is_copied_only_when_asked_for(head: bool) -> None:
    teacher, student = randomised(shape(4), 0), randomised(shape(2), 1)
    initialise(student, InitConfig(kind="teacher_layers", layers="bottom", head=head), teacher, "x")
    for name, value in student.cls.state_dict().items():
        assert torch.equal(value, teacher.cls.state_dict()[name]) == head, name


def test_a_teacher_with_narrow_embeddings_and_a_student_alike() -> None:
    teacher = randomised(shape(4, family="electra", embedding_size=4), 0)
    student = randomised(shape(4, family="electra", embedding_size=4), 1)
    initialise(student, InitConfig(kind="teacher_layers", layers="top", head=True), teacher, "x")
    assert torch.equal(logits(student), logits(teacher))


def test_bottleneck_layers_can_be_copied() -> None:
    teacher, student = randomised(shape(4, **MOBILE), 0), randomised(shape(2, **MOBILE), 1)
    initialise(student, InitConfig(kind="teacher_layers", layers=[1, 3], head=True), teacher, "x")
    for name, value in student.state_dict().items():
        source = name.replace(".layer.1.", ".layer.3.").replace(".layer.0.", ".layer.1.")
        assert torch.equal(value, teacher.state_dict()[source]), name


def test_nothing_is_drawn_and_random_changes_nothing() -> None:
    teacher, student = randomised(shape(2), 0), randomised(shape(2), 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    assert initialise(student, InitConfig(), teacher, "x") == []
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    for init in (InitConfig(kind="svd", layers="scores"), InitConfig(kind="teacher_layers", layers="scores")):
        assert initialise(student, init, teacher, "x") == [0, 1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"vocab_size": 31}, r"another vocabulary \(30 tokens, the student has 31\)"),
        ({"max_position_embeddings": 13}, r"13 positions, but the teacher has embeddings for 10 only.* by 3"),
        ({"family": "electra", "embedding_size": 4}, r"word embeddings are 8 wide, the student's 4"),
    ],
)
def test_embeddings_that_cannot_be_copied(student: dict[str, Any], message: str) -> None:
    init = InitConfig(kind="teacher_layers", layers=[0, 1])
    with pytest.raises(ConfigError, match=f"stage 'x': .*{message}"):
        check_init(init, shape(2, **student), shape(4), "stage 'x'")
    without = InitConfig(kind="teacher_layers", layers=[0, 1], embeddings=False)
    check_init(without, shape(2, **student), shape(4), "stage 'x'")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": [0]}, "`layers` belongs to"),
        ({"kind": "teacher_layers"}, "`layers` belongs to"),
        ({"kind": "model", "source": "a", "layers": "top"}, "`layers` belongs to"),
        ({"kind": "svd", "embeddings": False}, "`embeddings: false` belongs to"),
        ({"head": True}, "`head: true` belongs to"),
        ({"kind": "teacher_layers", "layers": "top", "head": True, "embeddings": False}, "needs `embeddings: true`"),
        ({"kind": "model"}, "`source` is required by"),
        ({"source": "a"}, "`source` belongs to"),
    ],
)
def test_keys_that_do_not_belong_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InitConfig(**fields)


# ---------------------------------------------------------------- from a model


@pytest.mark.parametrize("pooler", [(False, False), (True, True), (False, True)])
def test_a_student_that_continues_from_a_model(pooler: tuple[bool, bool]) -> None:
    source, student = randomised(shape(2, pooler=pooler[1]), 0), randomised(shape(2, pooler=pooler[0]), 1)
    assert load_into(student, Pretrained(source, missing_head=False), "x") == []
    for name, value in student.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_what_the_model_lacks_stays_as_drawn() -> None:
    source, student = randomised(shape(2), 0), randomised(shape(2, pooler=True), 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert load_into(student, Pretrained(source, missing_head=True), "x") == ["masked-LM head", "pooler"]
    for name, value in student.state_dict().items():
        drawn = name.startswith(("cls.", "bert.pooler."))
        assert torch.equal(value, before[name] if drawn else source.state_dict()[name]), name


def test_a_model_of_another_shape_is_refused_with_both_shapes() -> None:
    source = Pretrained(randomised(shape(4, intermediate_size=16), 0), missing_head=False)
    message = (
        r"stage 'x': student\.init\.source .* the student \(2 x 8\) has num_hidden_layers 2, intermediate_size 12; "
        r"the model \(4 x 8\) has num_hidden_layers 4, intermediate_size 16\."
    )
    with pytest.raises(ConfigError, match=message):
        load_into(randomised(shape(2), 1), source, "stage 'x'")
