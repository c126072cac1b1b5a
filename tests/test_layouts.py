"""Blocks that leave an image's channels last: the same numbers, and no image is turned around on the way."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from test_norms import predicted, unet, vae
from torch import Tensor, nn

from dreamlab.layouts import keep_layouts


def with_linear_projections() -> UNet2DConditionModel:
    """As Stable Diffusion 2 and SDXL have them."""
    return unet(use_linear_projection=True)


@pytest.mark.parametrize("make", [unet, with_linear_projections])
def test_values_and_gradients_are_those_of_diffusers(make: type[nn.Module]) -> None:
    plain, kept = make(), make()
    kept.load_state_dict(plain.state_dict())
    keep_layouts(kept)
    (pred, grads), (other, others) = predicted(plain.train()), predicted(kept.train())
    assert torch.allclose(pred, other, atol=1e-6)
    assert grads.keys() == others.keys()
    assert all(torch.allclose(grads[name], others[name], atol=1e-6) for name in grads)


@pytest.mark.parametrize("make", [unet, with_linear_projections])
def test_images_keep_their_channels_last(make: type[nn.Module]) -> None:
    network = make().to(memory_format=torch.channels_last).train()
    keep_layouts(network)
    seen: list[bool] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], given: object) -> None:
        for image in (args[0], given[0] if isinstance(given, tuple) else getattr(given, "sample", given)):
            assert isinstance(image, Tensor)
            seen.append(image.is_contiguous(memory_format=torch.channels_last))

    for module in network.modules():
        if isinstance(module, ResnetBlock2D | Transformer2DModel):
            module.register_forward_hook(look)
            if getattr(module, "conv_shortcut", None) is not None:
                module.conv_shortcut.register_forward_hook(look)
    predicted(network)
    assert len(seen) > 20 and all(seen)


def test_a_vaes_blocks_are_such_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = vae().double(), vae().double()
    keep_layouts(kept)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    with torch.no_grad():
        told = plain(image).sample
        monkeypatch.setattr(ResnetBlock2D, "forward", lambda *_: pytest.fail("diffusers' block, which divides by 1"))
        assert torch.allclose(kept(image).sample, told, atol=1e-12)


def test_a_block_drops_as_before() -> None:
    network = nn.ModuleList([ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4, dropout=0.5)])
    keep_layouts(network)
    assert network.train()[0].dropout.training and not network.eval()[0].dropout.training
