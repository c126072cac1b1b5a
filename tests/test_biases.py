"""Biases added on the way: while a GPU draws, blocks give what they give otherwise, rounded less often."""

from collections.abc import Callable

import pytest
import torch
from test_norms import apart, needs_gpu, unet, vae
from torch import Tensor, nn

from dreamlab import biases
from dreamlab.biases import OnePixel, total, without_bias
from dreamlab.layouts import keep_layouts
from dreamlab.norms import fuse_norms


def fused(make: Callable[[], nn.Module]) -> nn.Module:
    network = make().to("cuda", memory_format=torch.channels_last).eval()
    keep_layouts(network)
    fuse_norms(network)
    draw_biases(network)
    return network


def draw_biases(network: nn.Module) -> None:
    """Biases other than 0, which they are at first."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("bias"):
                weight.normal_()


def of(network: nn.Module) -> Tensor:
    """What a U-Net predicts of some noise, or a VAE decodes."""
    dtype, stream = next(network.parameters()).dtype, torch.Generator().manual_seed(5)
    noise, text = torch.randn(2, 4, 8, 8, generator=stream), torch.randn(2, 3, 8, generator=stream)
    noise, text = noise.to("cuda", dtype), text.to("cuda", dtype)
    if hasattr(network, "decode"):
        return network.decode(noise).sample
    return network(noise, torch.tensor([10, 900], device="cuda"), text).sample


def test_only_convolutions_of_one_pixel_become_products() -> None:
    network = unet()
    keep_layouts(network)
    found = [name for name, module in network.named_modules() if isinstance(module, OnePixel)]
    ones = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert found == ones and len(found) > 8
    assert {name.rpartition(".")[2] for name in found} == {"conv_shortcut", "proj_in", "proj_out"}


def test_a_convolution_without_its_bias_and_the_bias() -> None:
    conv, image = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(2, 3, 9, 9)
    assert torch.allclose(without_bias(conv, image) + conv.bias[:, None, None], conv(image), atol=1e-6)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("make", [unet, vae])
def test_a_network_gives_the_same_without_gradients_as_with_them(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fused(make)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.no_grad():
        drawn = of(network)
    assert apart(drawn, of(network).double()) < 1e-5


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("make", [unet, vae])
def test_in_half_precision_it_is_no_farther_from_the_exact_numbers(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fused(make).double()
    told = of(network)
    network.bfloat16()
    far = []
    for is_drawing in (biases.is_drawing, lambda image: False):
        monkeypatch.setattr("dreamlab.layouts.is_drawing", is_drawing)
        monkeypatch.setattr("dreamlab.biases.is_drawing", is_drawing)
        with torch.no_grad():
            far.append(float((of(network).double() - told).square().mean().sqrt()))
    assert 0 < far[0] < 1.1 * far[1]


@pytest.mark.gpu
@needs_gpu
def test_the_sum_of_two_images_and_a_bias() -> None:
    first, second = (torch.randn(2, 48, 7, 5, device="cuda").to(memory_format=torch.channels_last) for _ in "12")
    bias = torch.randn(48, device="cuda")
    found = total(first, second, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, first + second + bias[:, None, None], atol=1e-6)
    assert torch.allclose(total(first, second.contiguous(), bias), found, atol=1e-6)
