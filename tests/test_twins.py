"""What guidance's halves share is computed once: the same predictions and pictures, of half as many rows."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from test_norms import unet
from test_samplers import apart, drawn
from torch import Tensor, nn

from dreamlab.layouts import ResidualBlock, keep_layouts
from dreamlab.models import Family
from dreamlab.running_sums import sum_in_place
from dreamlab.twins import once


def fused(**changes: Any) -> UNet2DConditionModel:
    network = unet(**changes).eval()
    keep_layouts(network)
    sum_in_place(network)
    return network


def rows_in(layer: nn.Module) -> list[int]:
    """How many rows a layer is given, call for call."""
    seen: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def predicted(network: UNet2DConditionModel, **told: Any) -> Tensor:
    """Of two latents, twice, and four prompts."""
    stream = torch.Generator().manual_seed(5)
    latents, prompts = torch.randn(2, 4, 8, 8, generator=stream), torch.randn(4, 3, 8, generator=stream)
    with torch.no_grad():
        return network(torch.cat([latents] * 2), torch.tensor(10), prompts, **told).sample


def test_it_predicts_the_same_of_half_as_many_rows() -> None:
    network = fused()
    block = network.down_blocks[0]
    first, tokens, then = (
        rows_in(layer)
        for layer in (block.resnets[0].conv1, block.attentions[0].transformer_blocks[0].attn1, network.mid_block)
    )
    plain = predicted(network)
    with once(network, 7.5):
        shared = predicted(network)
    assert (first, tokens, then) == ([4, 2], [4, 2], [4, 4])
    assert torch.allclose(shared, plain, atol=1e-6) and not torch.equal(plain[:2], plain[2:])
    assert torch.equal(predicted(network), plain) and type(block.resnets[0]) is ResidualBlock


def test_several_layers_of_attention_go_on_with_all_rows() -> None:
    network = fused(transformer_layers_per_block=2, use_linear_projection=True)
    plain = predicted(network)
    second = rows_in(network.down_blocks[0].attentions[0].transformer_blocks[1].attn1)
    with once(network, 7.5):
        assert torch.allclose(predicted(network), plain, atol=1e-6)
    assert second == [4]


@pytest.mark.parametrize(
    ("guidance", "changes"),
    [
        (1.0, {}),  # which draws without a second half
        (7.5, {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}),  # the prompt comes with the time
        (7.5, {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}),
    ],
)
def test_where_the_halves_differ_from_the_start_all_rows_are_computed(guidance: float, changes: dict[str, Any]) -> None:
    network = fused(**changes)
    rows, plain = rows_in(network.down_blocks[0].resnets[0].conv1), predicted(network)
    with once(network, guidance):
        assert torch.allclose(predicted(network), plain, atol=1e-6)
    assert rows == [4, 4]


def test_pictures_are_the_same(model: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_in(model.parts()["unet"].down_blocks[0].resnets[0].conv1)
    shared = drawn(model, "ddim", 3)
    assert rows == [3] * 4
    monkeypatch.setattr("dreamlab.twins._shares", lambda denoiser: False)
    assert max(map(apart, drawn(model, "ddim", 3), shared)) <= 1 and rows[4:] == [6] * 4
