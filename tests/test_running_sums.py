"""Transformer blocks that add in place: diffusers' numbers to the bit, but for what a GPU draws, rounded less often."""

from collections.abc import Callable

import pytest
import torch
from test_biases import draw_biases, of
from test_layouts import with_linear_projections
from test_norms import needs_gpu, same_after, unet, vae
from torch import nn

from dreamlab.fused import fuse
from dreamlab.running_sums import Block, for_prompts, sum_in_place


def test_values_and_gradients_are_those_of_diffusers_to_the_bit() -> None:
    other = same_after(sum_in_place)
    assert sum(type(module) is Block for module in other.modules()) == 4


def test_a_mask_hides_what_it_hides_in_diffusers() -> None:
    plain, other = unet(), unet()
    sum_in_place(other)
    noise, text, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [1, 0, 0]])
    with torch.no_grad():
        masked = [one(noise, torch.tensor(10), text, encoder_attention_mask=mask).sample for one in (plain, other)]
        assert torch.equal(*masked) and not torch.equal(plain(noise, torch.tensor(10), text).sample, masked[0])


def test_rows_repeat_until_there_are_as_many_as_prompts() -> None:
    rows, prompts = torch.randn(2, 5), torch.randn(6, 3)
    assert torch.equal(for_prompts(rows, prompts), torch.cat([rows, rows, rows]))
    assert for_prompts(rows, rows) is rows and for_prompts(rows, None) is rows


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("make", [unet, with_linear_projections, vae])
def test_all_that_drawing_computes_otherwise_is_no_farther_from_the_exact_numbers(
    make: Callable[[], nn.Module],
) -> None:
    """Sums, norms, gates, joined and doubled images, all at once, against the same network with gradients."""
    network = make().to("cuda", memory_format=torch.channels_last).eval()
    draw_biases(network)
    exact = of(network.double()).detach()
    fuse([network.bfloat16()])
    plain = of(network)
    with torch.no_grad():
        drawn = of(network)
    far = [float((one.double() - exact).square().mean().sqrt()) for one in (drawn, plain)]
    assert 0 < far[0] < 1.1 * far[1] and not torch.equal(drawn, plain)
