"""GEGLU in one go: the network's own numbers on a CPU, and on a GPU those of PyTorch's GELU."""

import pytest
import torch
from diffusers.models.activations import GEGLU
from test_norms import apart, needs_gpu, same_after
from torch.nn.functional import gelu

from dreamlab.gates import Gate, fuse_gates


def test_on_a_cpu_a_network_is_the_same_to_the_bit() -> None:
    fused = same_after(fuse_gates)
    assert sum(type(module) is Gate for module in fused.modules()) == 4  # one in each transformer
    assert not any(type(module) is GEGLU for module in fused.modules())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sizes", [(2, 4096, 320), (1, 7, 24), (3, 65, 1500), (32, 4096, 40)])
def test_on_a_gpu_values_and_gradients_are_geglus(sizes: tuple[int, ...]) -> None:
    *rows, channels = sizes
    torch.manual_seed(0)
    gate = GEGLU(channels, channels).cuda()
    fuse_gates(torch.nn.ModuleList([gate]))
    gate.proj = torch.nn.Identity()
    projected = (torch.randn(*rows, 2 * channels, device="cuda") * 2).requires_grad_()
    grad = torch.randn(*rows, channels, device="cuda")
    found = gate(projected)
    found.backward(grad)
    exact = projected.detach().double().requires_grad_()
    h, g = exact.chunk(2, -1)
    told = h * gelu(g)
    told.backward(grad.double())
    assert apart(found, told) < 1e-6
    assert apart(projected.grad, exact.grad) < 1e-6


@pytest.mark.gpu
@needs_gpu
def test_in_half_precision_it_rounds_once() -> None:
    """Never further from float64 than half a step of bfloat16."""
    gate = torch.nn.ModuleList([GEGLU(64, 64)]).cuda()
    fuse_gates(gate)
    gate[0].proj = torch.nn.Identity()
    projected = torch.randn(5, 9, 128, device="cuda", dtype=torch.bfloat16)
    h, g = projected.double().chunk(2, -1)
    told = h * gelu(g)
    assert ((gate[0](projected).double() - told).abs() <= told.abs() * 2**-8 + 1e-9).all()
