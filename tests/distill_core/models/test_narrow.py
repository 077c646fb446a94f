"""The teacher made narrower: what truncated SVD promises, and that nothing is lost at equal width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from configs.errors import ConfigError
from distill_core.batch import Batch
from distill_core.features import FeatureRequest
from distill_core.models.config import EncoderConfig
from distill_core.models.encoder import Encoder
from distill_core.models.narrow import basis_of, check_narrow, low_rank, narrow_teacher

V = 50


def shape(**changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
    fields |= {"intermediate_size": 40, "max_position_embeddings": 12, "hidden_dropout_prob": 0.0}
    return EncoderConfig(**(fields | changes))


def randomised(config: EncoderConfig, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def logits(encoder: Encoder) -> Tensor:
    batch = Batch.of([[3, 4, 5, 6, 7], [8, 9], [10]])
    with torch.no_grad():
        return encoder(batch, FeatureRequest(logits=frozenset({"all"}))).logits["all"]


@pytest.mark.parametrize("width", [1, 7, 16, 23, 24])
def test_the_embeddings_lose_what_truncated_svd_must_lose(width: int) -> None:
    teacher = randomised(shape())
    student = randomised(shape(hidden_size=width, num_attention_heads=1), 1)
    narrow_teacher(student, teacher, [], head=False)
    words = teacher.bert.embeddings.word_embeddings.weight.detach().double()
    basis = basis_of(words, width)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, torch.eye(width, dtype=torch.float64))
    mine = student.bert.embeddings.word_embeddings.weight.detach().double()
    error = (words - mine @ basis.vectors.T).square().sum()
    tail = torch.linalg.svdvals(words)[width:].square().sum()
    torch.testing.assert_close(error, tail, atol=1e-5, rtol=1e-5)
    places = teacher.bert.embeddings.position_embeddings.weight.detach().double() @ basis.vectors
    torch.testing.assert_close(student.bert.embeddings.position_embeddings.weight.detach().double(), places)


def test_the_basis_lies_near_axes() -> None:
    """Columns that hold nearly all of the embeddings are the student's coordinates, in order."""
    words = torch.randn(V, 10, generator=torch.Generator().manual_seed(0)) * 1e-3
    kept = [1, 4, 5, 8]
    words[:, kept] += torch.randn(V, 4, generator=torch.Generator().manual_seed(1))
    basis = basis_of(words, 4)
    assert basis.axes.tolist() == kept
    assert (basis.vectors - torch.eye(10, dtype=torch.float64)[:, kept]).abs().max() < 0.01


def test_only_the_embeddings_without_layers() -> None:
    teacher, student = randomised(shape()), randomised(shape(hidden_size=12), 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    narrow_teacher(student, teacher, [], head=False)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("bert.embeddings."), name


def test_at_equal_width_the_student_is_the_teacher() -> None:
    teacher, student = randomised(shape()), randomised(shape(), 1)
    narrow_teacher(student, teacher, [0, 1, 2, 3], head=True)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(student), logits(teacher), atol=1e-4, rtol=0)


def test_feed_forward_neurons_that_write_nothing_go_without_a_trace() -> None:
    teacher = randomised(shape())
    student = randomised(shape(intermediate_size=30), 1)
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.output.dense.weight[:, ::4] = 0
    narrow_teacher(student, teacher, [0, 1, 2, 3], head=True)
    torch.testing.assert_close(logits(student), logits(teacher), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_a_narrower_head_is_the_best_of_its_rank(rank: int) -> None:
    draw = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(8, 20, generator=draw, dtype=torch.float64) for _ in range(2))
    to_left, to_right = low_rank(left, right, rank)
    assert to_left.shape == to_right.shape == (rank, 8)
    product = left.T @ right
    error = (product - (to_left @ left).T @ (to_right @ right)).square().sum()
    tail = torch.linalg.svdvals(product)[rank:].square().sum()
    torch.testing.assert_close(error, tail, atol=1e-9, rtol=1e-9)


def test_a_head_of_smaller_rank_is_kept_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(8, 3, generator=draw, dtype=torch.float64) @ torch.randn(3, 20, generator=draw).double()
    right = torch.randn(8, 20, generator=draw, dtype=torch.float64)
    to_left, to_right = low_rank(left, right, 5)
    torch.testing.assert_close((to_left @ left).T @ (to_right @ right), left.T @ right)
    assert to_left.isfinite().all() and to_right.isfinite().all()


def test_narrow_heads_score_as_the_teachers_do() -> None:
    """Heads of low rank, and a stream that lives in the student's coordinates: scores and values are the teacher's."""
    draw = torch.Generator().manual_seed(0)
    teacher, student = randomised(shape(num_hidden_layers=1)), randomised(shape(hidden_size=12, num_hidden_layers=1), 1)
    kept = torch.arange(0, 24, 2)
    with torch.no_grad():
        words = torch.zeros(V, 24)
        words[:, kept] = torch.randn(V, 12, generator=draw)
        teacher.bert.embeddings.word_embeddings.weight.copy_(words)
        attention = teacher.bert.encoder.layer[0].attention
        for dense in (attention.self.query, attention.self.key, attention.self.value):
            low = torch.randn(4, 6, 3, generator=draw) @ torch.randn(4, 3, 24, generator=draw)
            dense.weight.copy_(low.reshape(24, 24))
            dense.bias.zero_()
        narrow_teacher(student, teacher, [0], head=False)
        x = torch.randn(5, 24, generator=draw)
        x[:, 1::2] = 0
        small = x @ basis_of(words, 12).vectors.float()
        own = student.bert.encoder.layer[0].attention
        scores = []
        for module, stream in ((attention.self, x), (own.self, small)):
            q, k = (dense(stream).view(5, 4, -1).transpose(0, 1) for dense in (module.query, module.key))
            scores.append(q @ k.mT / q.shape[-1] ** 0.5)
        torch.testing.assert_close(scores[1], scores[0], atol=1e-3, rtol=1e-4)
        written = attention.output.dense(attention.self.value(x))[:, kept]
        torch.testing.assert_close(own.output.dense(own.self.value(small)), written, atol=1e-3, rtol=1e-4)


def test_the_heads_that_write_most_are_kept_in_their_order() -> None:
    teacher, student = randomised(shape()), randomised(shape(hidden_size=12, num_attention_heads=2), 1)
    layer = teacher.bert.encoder.layer[1].attention
    with torch.no_grad():
        layer.self.value.weight[6:12] *= 0.01
        layer.output.dense.weight[:, 18:24] *= 0.01
    narrow_teacher(student, teacher, [1, 1, 1, 1], head=False)
    q = basis_of(teacher.bert.embeddings.word_embeddings.weight, 12).vectors
    kept = torch.cat([torch.arange(0, 6), torch.arange(12, 18)])
    for name in ("query", "key", "value"):
        found = getattr(student.bert.encoder.layer[0].attention.self, name).weight.detach()
        expected = getattr(layer.self, name).weight.detach().double()[kept] @ q
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)


def test_a_student_of_another_family() -> None:
    teacher = randomised(shape())
    student = randomised(shape(family="distilbert", type_vocab_size=0), 1)
    narrow_teacher(student, teacher, [0, 1, 2, 3], head=True)
    torch.testing.assert_close(logits(student), logits(teacher), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("student", "layers", "message"),
    [
        (shape(hidden_size=32), False, r"hidden_size 32 against 24\. Use init: \{kind: random\}"),
        (shape(num_attention_heads=6), True, r"num_attention_heads 6 against 4\. Use init: \{kind: svd\} without `lay"),
        (shape(hidden_size=16, num_attention_heads=2), True, r"head_size 8 against 6"),
        (shape(hidden_size=12, intermediate_size=50), True, r"intermediate_size 50 against 40"),
        (shape(family="electra", embedding_size=8), False, r"the student is of family electra"),
    ],
)
def test_what_cannot_be_made(student: EncoderConfig, layers: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=f"stage 'x': student.init.kind: svd .*{message}"):
        check_narrow(student, shape(), layers, "stage 'x'")


def test_wider_heads_do_not_matter_for_the_embeddings() -> None:
    check_narrow(shape(hidden_size=16, num_attention_heads=2, intermediate_size=50), shape(), False, "x")
