"""A way up that joins less: diffusers' numbers, and on a GPU those of a norm and a product of joined images."""

import pytest
import torch
from test_norms import apart, needs_gpu, same_after, unet
from torch import nn

from dreamlab.biases import OnePixel
from dreamlab.layouts import keep_layouts
from dreamlab.norms import NormWithSiLU, fuse_norms
from dreamlab.way_up import CrossAttnUpBlock, UpBlock, join_less


def test_on_a_cpu_a_network_is_the_same_to_the_bit() -> None:
    other = same_after(join_less)
    assert [type(block) for block in other.up_blocks] == [UpBlock, CrossAttnUpBlock]


@pytest.mark.gpu
@needs_gpu
def test_a_network_joins_nothing_while_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """But its timesteps, and where FreeU is to see both images."""
    network = unet().to("cuda", torch.bfloat16).to(memory_format=torch.channels_last).eval()
    for change in (keep_layouts, fuse_norms, join_less):
        change(network)
    noise, text = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in ((2, 4, 8, 8), (2, 3, 8)))
    joined, join = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *a, **k: joined.append(parts[0].dim()) or join(parts, *a, **k))
    with torch.no_grad():
        network(noise, torch.tensor(10, device="cuda"), text)
        assert joined.count(4) == 0
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        network(noise, torch.tensor(10, device="cuda"), text)
    assert joined.count(4) == 4


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("channels", [(40, 24), (24, 8), (320, 1600)])  # across a group's border, and along one
def test_norm_and_product_of_joined_images(channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    norm, product = NormWithSiLU(8, sum(channels)).cuda(), nn.Conv2d(sum(channels), 48, 1).cuda()
    product.__class__ = OnePixel
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    last = torch.channels_last
    image, beside = (torch.randn(3, c, 9, 7, device="cuda").mul(2).add(5).to(memory_format=last) for c in channels)
    both = torch.cat([image, beside], dim=1)
    with torch.no_grad():
        normed, found = norm.joined(image, beside), product.joined(image, beside)
        assert normed.is_contiguous(memory_format=last) and found.is_contiguous(memory_format=last)
        assert apart(normed, norm(both).double()) < 1e-6
        assert apart(found, product.double()(both.double())) < 1e-5
