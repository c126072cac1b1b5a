"""A denoiser that is replayed draws the same pictures, and one that can't be says why and draws them, too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_sample import apart, draw
from torch import Tensor

from dreamlab.replayed import Replayed

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]  # fmt: skip


@torch.no_grad()
def test_each_shape_is_recorded_once_and_each_call_reads_its_own_arguments() -> None:
    calls = []

    def network(x: Tensor, t: Tensor, words: dict[str, Tensor], return_dict: bool) -> tuple[Tensor]:
        calls.append(x.shape)
        return (x * t + words["text"],)

    replayed = Replayed(network)
    for number, size in [(n, size) for n in range(5) for size in (2, 3)]:
        x, t = torch.full((size, 4), 2.0, device="cuda"), torch.tensor(float(number))
        torch.cuda.synchronize()
        (y,) = replayed(x, t, words={"text": torch.ones(size, 4, device="cuda")}, return_dict=False)
        assert torch.equal(y, torch.full((size, 4), 2.0 * number + 1, device="cuda"))
    assert len(calls) == 4  # plainly and to be recorded, of two shapes


@torch.no_grad()
def test_where_python_is_ahead_nothing_is_recorded() -> None:
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(x)
        torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        return x + 1

    replayed, x = Replayed(network), torch.zeros(2, device="cuda")
    for _ in range(4):
        x = replayed(x)
    assert x.tolist() == [4.0, 4.0] and len(calls) == 4


@torch.no_grad()
def test_what_waits_for_the_gpu_is_not_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    def network(x: Tensor) -> Tensor:
        return x + float(x.sum())

    replayed, x = Replayed(network), torch.ones(2, device="cuda")
    assert [replayed(x).tolist() for _ in range(4)] == [[3.0, 3.0]] * 4
    assert capsys.readouterr().err.count("Drawing is not replayed as a CUDA graph") == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pictures_are_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    settings = {"n": 3, "steps": 6, "batch_size": 2, "device": "cuda", "precision": precision}
    ours = draw(tmp_path / "ours", **settings)
    monkeypatch.setattr("dreamlab.halves.Replayed", lambda call: call)
    plain = draw(tmp_path / "plain", **settings)
    assert max(apart(one, other) for one, other in zip(ours, plain, strict=True)) <= (1 if precision == "fp32" else 4)
    assert np.std(ours[0]) > 10
