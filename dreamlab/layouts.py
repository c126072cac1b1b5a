"""Blocks of diffusers' networks that leave an image's channels last, where convolutions are faster.

Diffusers turns an image around, channels first, after each transformer and, in training, before the convolution past a
residual block; on a GPU in half precision the next convolution turns it back. The numbers are the same either way.
"""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn


class Transformer(Transformer2DModel):
    """Transformer2DModel whose tokens become an image by their shape alone: they lie as its pixels would."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:  # fmt: skip
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return residual + (image if self.use_linear_projection else self.proj_out(image))


class ResidualBlock(ResnetBlock2D):
    """ResnetBlock2D that does as in inference when it trains, too; its dropout, a module of its own, still drops.

    Nor does it divide by 1, which takes as long as to add.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        is_plain = self.output_scale_factor == 1 and self.time_embedding_norm == "default" and not self.skip_time_act
        if not is_plain or self.upsample is not None or self.downsample is not None:
            image: Tensor = super().forward(input_tensor, temb, *args, **kwargs)
            return image
        image = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            image = image + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        image = self.conv2(self.dropout(self.nonlinearity(self.norm2(image))))
        return (self.conv_shortcut(input_tensor) if self.conv_shortcut is not None else input_tensor) + image

    def train(self, mode: bool = True) -> "ResidualBlock":
        super().train(mode)
        self.training = False
        return self


def keep_layouts(network: nn.Module) -> None:
    """Let a network's blocks be such; weights and names stay as they are."""
    kinds: dict[type, type] = {Transformer2DModel: Transformer, ResnetBlock2D: ResidualBlock}
    for module in network.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
            module.train(module.training)
