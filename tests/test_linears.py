"""Linear layers as convolutions of one pixel: the same numbers, in whatever batch, and nn.Linear's own elsewhere."""

import copy

import pytest
import torch
from torch import nn

from dreamlab.linears import FEWEST, Linear, convolve_linears


def pair(outputs: int, has_bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, outputs, bias=has_bias)
    ours = copy.deepcopy(plain)
    convolve_linears(ours)
    assert type(ours) is Linear
    return plain, ours


@pytest.mark.parametrize(("sizes", "outputs"), [((FEWEST, 24), 40), ((3, 5, 70, 24), 1), ((8, 77, 24), 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_a_linear_layers(sizes: tuple[int, ...], outputs: int, has_bias: bool) -> None:
    plain, ours = pair(outputs, has_bias)
    rows, grad = torch.randn(sizes), torch.randn(*sizes[:-1], outputs)
    found = []
    for layer in (plain, ours):
        own = rows.clone().requires_grad_()
        told = layer(own)
        told.backward(grad)
        found.append([told, own.grad, *(weight.grad for weight in layer.parameters())])
    assert all(torch.allclose(one, other, rtol=1e-5, atol=2e-5) for one, other in zip(*found, strict=True))


def test_a_row_is_the_same_to_the_bit_beside_any_others() -> None:
    _, ours = pair(40, True)
    rows = torch.randn(4 * FEWEST, 24)
    with torch.no_grad():
        assert torch.equal(ours(rows)[: 2 * FEWEST], ours(rows[: 2 * FEWEST]))
        assert torch.equal(ours(rows), ours(rows))
        # Also what the rows before it are, or which thread it falls to
        assert torch.equal(ours(rows)[FEWEST:], ours(rows[FEWEST:]))


@pytest.mark.parametrize("how", ["few rows", "half precision", "float64"])
def test_elsewhere_it_is_the_linear_layer_to_the_bit(how: str) -> None:
    plain, ours = pair(40, True)
    rows = torch.randn(FEWEST - 1 if how == "few rows" else FEWEST, 24)
    if how == "float64":
        plain, ours, rows = plain.double(), ours.double(), rows.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "half precision"):
        assert torch.equal(plain(rows), ours(rows))
