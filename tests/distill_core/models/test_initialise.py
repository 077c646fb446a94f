from __future__ import annotations

from typing import Any

import pytest
import torch

from configs.errors import ConfigError
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.initialise import check_layers, copy_teacher_layers


def shape(layers: int, **changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2}
    fields |= {"intermediate_size": 12, "max_position_embeddings": 10, "num_hidden_layers": layers}
    return EncoderConfig(**(fields | changes))


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
    ],
)
def test_layers_that_cannot_be_copied(layers: list[int], student: EncoderConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"stage 'x': .*{message}"):
        check_layers(layers, student, shape(4), "stage 'x'")


def test_layers_that_can() -> None:
    check_layers([0, 2, 3], shape(3), shape(4), "stage 'x'")
