"""Images at twice their size: on a GPU those of a convolution of repeated pixels, and elsewhere diffusers' own."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from test_norms import apart, needs_gpu, same_after
from torch import nn
from torch.nn.functional import conv2d, interpolate

from dreamlab.subpixels import Doubled, convolve_before


def test_on_a_cpu_a_network_is_the_same_to_the_bit() -> None:
    other = same_after(convolve_before)
    assert sum(type(module) is Doubled for module in other.modules()) == 1


def test_only_repeated_pixels_and_a_convolution_of_three_by_three() -> None:
    layers = nn.ModuleList([
        Upsample2D(8, use_conv=True), Upsample2D(8), Upsample2D(8, use_conv_transpose=True),
        Upsample2D(8, use_conv=True, kernel_size=5, padding=2), Upsample2D(8, use_conv=True, interpolate=False),
    ])  # fmt: skip
    convolve_before(layers)
    assert [type(layer) is Doubled for layer in layers] == [True, False, False, False, False]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("sizes", "out"), [((2, 3, 4, 6), 5), ((1, 130, 3, 2), 140), ((2, 64, 33, 17), 64)])
def test_on_a_gpu_it_is_the_convolution_of_repeated_pixels(sizes: tuple[int, ...], out: int) -> None:
    from dreamlab.subpixel_kernels import interleave, sums_of_taps

    torch.manual_seed(0)
    image, weight, bias = torch.randn(sizes), torch.randn(out, sizes[1], 3, 3), torch.randn(out)
    image, weight, bias = (one.to("cuda", torch.float64) for one in (image, weight, bias))
    found = interleave(conv2d(image, sums_of_taps(weight), padding=1), bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert apart(found, conv2d(interpolate(image, scale_factor=2.0), weight, bias, padding=1)) < 1e-6


@pytest.mark.gpu
@needs_gpu
def test_in_half_precision_it_is_near_and_odd_sizes_are_diffusers() -> None:
    torch.manual_seed(0)
    layer = Upsample2D(32, use_conv=True).to("cuda", torch.bfloat16)
    image = torch.randn(2, 32, 9, 5, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        told, odd = layer(image), layer(image, (17, 9))
        convolve_before(nn.ModuleList([layer]))
        found = layer(image)
        assert not torch.equal(found, told) and apart(found, told.double()) < 0.01
        assert torch.equal(layer(image, (17, 9)), odd)
    assert torch.equal(layer(image), told)  # with gradients
