"""Group norms in one go: the network's own numbers on a CPU, and on a GPU those of PyTorch's group norm and SiLU."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from dreamlab.norms import Norm, NormWithSiLU, fuse_norms

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def unet(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(3)
    settings = {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 4,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes})


def vae() -> AutoencoderKL:
    torch.manual_seed(4)
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def predicted(network: nn.Module, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    """What a U-Net predicts of some noise, and its weights' gradients."""
    network.zero_grad()
    stream = torch.Generator().manual_seed(5)
    noise, text = torch.randn(2, 4, 8, 8, generator=stream), torch.randn(2, 3, 8, generator=stream)
    pred = network(noise.to(device), torch.tensor([10, 900], device=device), text.to(device)).sample
    pred.square().mean().backward()
    return pred.detach().cpu(), {name: weight.grad.cpu() for name, weight in network.named_parameters()}


def same_after(change: Callable[[nn.Module], None]) -> nn.Module:
    """A U-Net after a change that leaves what it predicts, and its gradients, as they were to the bit."""
    plain, changed = unet(), unet()
    change(changed)
    (pred, grads), (other, others) = predicted(plain), predicted(changed)
    assert torch.equal(pred, other)
    assert all(torch.equal(grads[name], others[name]) for name in grads) and grads.keys() == others.keys()
    return changed


def test_on_a_cpu_a_network_is_the_same_to_the_bit_and_so_are_its_weights() -> None:
    fused = same_after(fuse_norms)
    # Eight blocks' two each and the last one with SiLU, four transformers' without
    kinds = [type(module) for module in fused.modules() if isinstance(module, nn.GroupNorm)]
    assert (kinds.count(NormWithSiLU), kinds.count(Norm), len(kinds)) == (17, 4, 21)


def test_a_copy_has_weights_of_its_own() -> None:
    fused = unet()
    fuse_norms(fused)
    before, copied = predicted(fused)[0], copy.deepcopy(fused)
    with torch.no_grad():
        copied.conv_norm_out.weight.zero_()
    assert torch.equal(predicted(fused)[0], before) and not torch.equal(predicted(copied)[0], before)


def test_a_vae_is_the_same_too() -> None:
    plain, fused = vae(), vae()
    fuse_norms(fused)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        assert torch.equal(plain(image).sample, fused(image).sample)


def apart(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).abs().max() / exact.abs().max())


SHAPES = ((2, 320, 64, 64, 32), (1, 48, 7, 5, 8), (2, 2560, 8, 8, 32), (3, 64, 9, 9, 32), (1, 128, 256, 256, 32))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("shape", "has_silu"), [*product(SHAPES, (True, False))])
def test_on_a_gpu_values_and_gradients_are_group_norms(shape: tuple[int, ...], has_silu: bool) -> None:
    *sizes, groups = shape
    norm = (NormWithSiLU if has_silu else Norm)(groups, sizes[1], eps=1e-5).cuda()
    torch.manual_seed(0)
    for weight in (norm.weight, norm.bias):
        nn.init.normal_(weight)
    image = (torch.randn(sizes, device="cuda") * 2 + 30).requires_grad_()  # a mean that squares would drown in
    grad = torch.randn(sizes, device="cuda")
    found = norm(image)
    assert found.is_contiguous(memory_format=torch.channels_last)
    found.backward(grad)
    exact = [one.detach().double().requires_grad_() for one in (image, norm.weight, norm.bias)]
    told = group_norm(exact[0], groups, *exact[1:], 1e-5)
    told = silu(told) if has_silu else told
    told.backward(grad.double())
    assert apart(found, told) < 3e-6
    for own, other in zip((image, norm.weight, norm.bias), exact, strict=True):
        assert apart(own.grad, other.grad) < 5e-6


def assert_rounds_as_autocast_does(fuse: Callable[[nn.Module], None]) -> None:
    """Both against float64: as far away as each other, in a network's output and gradients."""
    plain, fused, exact = unet().cuda(), unet().cuda(), unet().double().cuda()
    fuse(fused)
    torch.set_default_dtype(torch.float64)
    try:
        told, grads = predicted(exact.double(), "cuda")
    finally:
        torch.set_default_dtype(torch.float32)
    far = []
    for network in (plain, fused):
        with torch.autocast("cuda", torch.bfloat16):
            pred, own = predicted(network, "cuda")
        far.append([apart(pred, told), *(apart(own[name], grads[name]) for name in grads)])
    assert far[1][0] < 1.3 * far[0][0] + 1e-3
    assert sum(far[1]) < 1.1 * sum(far[0])


@pytest.mark.gpu
@needs_gpu
def test_under_autocast_it_rounds_once_where_autocast_does() -> None:
    assert_rounds_as_autocast_does(fuse_norms)


@pytest.mark.gpu
@needs_gpu
def test_deterministic_to_the_bit() -> None:
    norm, image = NormWithSiLU(32, 640).cuda(), torch.randn(2, 640, 32, 32, device="cuda", requires_grad=True)
    grads = []
    for _ in range(3):
        image.grad = norm.weight.grad = None
        norm(image).square().sum().backward()
        grads.append((image.grad.clone(), norm.weight.grad.clone()))
    assert all(torch.equal(one, other) for pair in grads[1:] for one, other in zip(grads[0], pair, strict=True))
