"""Transformer blocks that add in place: diffusers' numbers to the bit, but for what a GPU draws, rounded less often."""

from collections.abc import Callable

import pytest
import torch
from test_layouts import with_linear_projections
from test_norms import assert_same, needs_gpu, unet, vae
from torch import Tensor, nn

from dreamlab.fused import fuse
from dreamlab.running_sums import Block, for_prompts, sum_in_place


def test_values_and_gradients_are_those_of_diffusers_to_the_bit() -> None:
    plain, other = unet(), unet()
    sum_in_place(other)
    assert sum(type(module) is Block for module in other.modules()) == 4
    assert_same(plain, other)


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


def predicted(network: nn.Module) -> Tensor:
    """What a U-Net predicts of some noise, or a VAE decodes."""
    dtype, stream = next(network.parameters()).dtype, torch.Generator().manual_seed(5)
    noise, text = (torch.randn(size, generator=stream).to("cuda", dtype) for size in ((2, 4, 8, 8), (2, 3, 8)))
    if hasattr(network, "decode"):
        return network.decode(noise).sample
    return network(noise, torch.tensor([10, 900], device="cuda"), text).sample


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("make", [unet, with_linear_projections, vae])
def test_all_that_drawing_computes_otherwise_is_no_farther_from_the_exact_numbers(
    make: Callable[[], nn.Module],
) -> None:
    """Sums, norms, gates, joined and doubled images, all at once, against the same network with gradients."""
    network = make().to("cuda", memory_format=torch.channels_last).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():  # biases are 0 at first
            if name.endswith("bias"):
                weight.normal_()
    exact = predicted(network.double()).detach()
    fuse([network.bfloat16()])
    plain = predicted(network)
    with torch.no_grad():
        drawn = predicted(network)
    far = [float((one.double() - exact).square().mean().sqrt()) for one in (drawn, plain)]
    assert 0 < far[0] < 1.1 * far[1] and not torch.equal(drawn, plain)
