"""What a GPU runs compiled, compiled here for the CPU: the same numbers from one graph; and what if it fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from distill_core.decoder import Undecoded, Weights
from distill_core.objectives import OBJECTIVES, fused, kernels, logits, strips
from distill_core.objectives.fused import Part, opened
from tests.distill_core.objectives.streams import draw, masked_stream, shape

V, WIDTH = 211, 12
TERMS: dict[str, list[dict[str, Any]]] = {
    "kd_ce + mlm": [{"kind": "kd_ce", "temperature": 8.0}, {"kind": "mlm"}],
    "kd_kl + kd_mse": [{"kind": "kd_kl", "probability_shift": True, "fair_pairs": [(3, 5)]}, {"kind": "kd_mse"}],
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU; nothing may be warned of."""
    monkeypatch.setattr(kernels, "COMPILED_ON", {"cpu"})
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        yield


def run(terms: list[dict[str, Any]], lengths: list[int], dtype: torch.dtype, chunk: int = 64) -> list[Tensor]:
    """The sum, and the gradients of vectors, words and bias."""
    batch = masked_stream(lengths, V)
    assert batch.rows is not None
    generator = torch.Generator().manual_seed(0)
    sizes = [(len(batch.rows), WIDTH), (V, WIDTH), (V,)]
    mine, theirs = ([torch.randn(*size, generator=generator).to(dtype) for size in sizes] for _ in range(2))
    leaves = [t.requires_grad_() for t in mine]
    student = Undecoded(leaves[0], lambda x, use: use(x, Weights(leaves[1], leaves[2], None)))
    teacher = Undecoded(theirs[0], lambda x, use: use(x, Weights(theirs[1], theirs[2], None)))
    models = (shape(8, vocab=V), shape(8, vocab=V))
    built = [OBJECTIVES[fields["kind"]](OBJECTIVES[fields["kind"]].Config(**fields), *models) for fields in terms]

    def use(decodings: Any) -> Tensor:
        parts = []
        for number, term in enumerate(built):
            assert isinstance(term, logits.VocabularyTerm)
            data = term.data(batch, 0.0, decodings[0].vectors, lambda: iter([]))
            place = 0 if term.needs().teacher else None
            parts.append(Part(term, place, torch.tensor(0.5 + number).to(data[-1].dtype).float(), data))  # type: ignore[union-attr]
        return fused.fused(parts, decodings[0], decodings[1:], chunk)[0]

    total = opened([student, teacher], use)
    total.backward()
    return [total.detach(), *(leaf.grad.clone() for leaf in leaves)]  # type: ignore[union-attr]


def test_compiled_losses_and_gradients(compiled: None) -> None:
    """Precisions by turns, as each compilation takes some seconds; one graph serves all numbers of rows."""
    for number, (terms, dtype) in enumerate(zip(TERMS.values(), (torch.float32, torch.bfloat16), strict=True), 1):
        rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (2**-6, 2**-6)
        for lengths in ([17, 13, 9], [40, 30], [4]):
            with patch.object(kernels, "COMPILED_ON", set()):
                wanted = run(terms, lengths, dtype)
            for a, b in zip(run(terms, lengths, dtype), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        assert counters["stats"]["unique_graphs"] == number


def test_compiled_distance(compiled: None) -> None:
    for rows in (23, 7, 64):
        mine = draw(0, rows, 9).bfloat16().requires_grad_()
        theirs = draw(1, rows, 9).bfloat16()
        apart = mine.detach().float() - theirs.float()
        found = strips.squared_distance(mine, theirs)
        found.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(found, apart.square().sum(), rtol=1e-6, atol=0)
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, (2 * apart).bfloat16(), rtol=2**-7, atol=0)
    assert counters["stats"]["unique_graphs"] == 1


def test_without_a_compiler_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compile(function: Any, **_: Any) -> Any:
        def broken(*args: Any) -> None:
            calls.append(args)
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

        return broken

    monkeypatch.setattr(kernels, "COMPILED_ON", {"cpu"})
    monkeypatch.setattr(torch, "compile", compile)
    doubled = kernels.few_kernels(lambda x: [x])(lambda x: 2 * x)
    with pytest.warns(RuntimeWarning, match="needs Triton and a C compiler.*Failed to find C compiler") as found:
        assert [doubled(torch.ones(2)).tolist() for _ in range(3)] == [[2.0, 2.0]] * 3
    assert len(found) == len(calls) == 1


def test_no_memory_left_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "COMPILED_ON", {"cpu"})
    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.few_kernels(lambda x: [x])(lambda x: 2 * x)(torch.ones(2))


def test_as_a_gpu_computes_them() -> None:
    q, labels = draw(0, 5, 7), torch.tensor([[3], [0], [6], [3], [1]])
    plain = kernels.less_one_hot(q.clone(), labels), kernels.row_dots(q, q + 1)
    with patch.object(kernels, "one_pass", lambda t: True):
        assert torch.equal(kernels.less_one_hot(q, labels), plain[0])
        torch.testing.assert_close(kernels.row_dots(q, q + 1), plain[1])
