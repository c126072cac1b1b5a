"""Layer norms in one go: the network's own numbers on a CPU, and on a GPU those of PyTorch's layer norm."""

import pytest
import torch
from test_norms import apart, assert_rounds_as_autocast_does, needs_gpu, same_after
from torch import nn
from torch.nn.functional import layer_norm

from dreamlab.row_norms import RowNorm, fuse_row_norms

SIZES = [(2, 4096, 320), (1, 7, 24), (3, 65, 1500), (2, 64, 1280)]


def test_on_a_cpu_a_network_is_the_same_to_the_bit() -> None:
    fused = same_after(fuse_row_norms)
    assert sum(type(module) is RowNorm for module in fused.modules()) == 12  # three in each transformer
    assert not any(type(module) is nn.LayerNorm for module in fused.modules())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sizes", SIZES)
def test_on_a_gpu_values_and_gradients_are_layer_norms(sizes: tuple[int, ...]) -> None:
    """In float64 of the same half-precision numbers: rows differ by their rounding, weights' gradients hardly."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(sizes[-1], eps=1e-5, device="cuda")
    for weight in (norm.weight, norm.bias):
        nn.init.normal_(weight)
    norm.__class__ = RowNorm
    rows = (torch.randn(sizes, device="cuda") * 2 + 3).bfloat16().requires_grad_()
    grad = torch.randn(sizes, device="cuda").bfloat16()
    with torch.autocast("cuda", torch.bfloat16):  # which is to leave it alone
        found = norm(rows)
    assert found.dtype == torch.bfloat16
    found.backward(grad)
    exact = [one.detach().double().requires_grad_() for one in (rows, norm.weight, norm.bias)]
    told = layer_norm(exact[0], sizes[-1:], *exact[1:], 1e-5)
    told.backward(grad.double())
    for own, other in ((found, told), (rows.grad, exact[0].grad)):
        assert ((own.double() - other).abs() <= other.abs() * 2**-8 + 1e-4).all()
    assert apart(norm.weight.grad, exact[1].grad) < 1e-5 and apart(norm.bias.grad, exact[2].grad) < 1e-5


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sizes", SIZES)
def test_a_shift_is_added_first_and_rows_get_it_where_more_comes_later(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, rows = nn.LayerNorm(sizes[-1], device="cuda"), torch.randn(sizes, device="cuda")
    norm.__class__ = RowNorm
    shift, later = torch.randn(2, sizes[-1], device="cuda")
    kept = rows.clone()
    with torch.no_grad():
        found, again = norm.shifted(rows, shift), norm.shifted(kept, shift, later)
        assert apart(found, layer_norm((rows + shift).double(), sizes[-1:])) < 1e-6 and torch.equal(found, again)
        assert torch.allclose(kept, rows + shift + later, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_under_autocast_it_rounds_where_autocast_does() -> None:
    assert_rounds_as_autocast_does(fuse_row_norms)
