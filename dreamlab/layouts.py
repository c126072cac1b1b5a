"""Blocks of diffusers' networks that leave an image's channels last, where convolutions are faster.

Diffusers turns an image around, channels first, after each transformer and, in training, before the convolution past a
residual block; on a GPU in half precision the next convolution turns it back. The numbers are the same either way.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from dreamlab.becoming import become
from dreamlab.biases import OnePixel, fold_biases, is_drawing, is_drawing_in_half, total, without_bias
from dreamlab.norms import NormWithSiLU
from dreamlab.running_sums import for_prompts


class Transformer(Transformer2DModel):
    """Transformer2DModel whose tokens become an image by their shape alone: they lie as its pixels would."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:  # fmt: skip
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        image = image if self.use_linear_projection else self.proj_out(image)
        return for_prompts(residual, image) + image


class ResidualBlock(ResnetBlock2D):
    """ResnetBlock2D that does as in inference when it trains, too; its dropout, a module of its own, still drops.

    Nor does it divide by 1, which takes as long as to add.
    """

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None, *args: Any, beside: Tensor | None = None, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        """Of an image, joined at its channels with one `beside` it, which on a GPU they needn't be."""
        is_plain = self._is_plain()
        is_drawn = is_plain and is_drawing(input_tensor) and self._folds()
        if beside is not None and not (is_drawn and self._reads_both(input_tensor, beside)):
            input_tensor, beside = torch.cat([input_tensor, beside], dim=1), None
        if not is_plain:
            image: Tensor = super().forward(input_tensor, temb, *args, **kwargs)
            return image
        if is_drawn:
            return self._drawn(input_tensor, beside, temb)
        image = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            image = image + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        image = self.conv2(self.dropout(self.nonlinearity(self.norm2(image))))
        return (self.conv_shortcut(input_tensor) if self.conv_shortcut is not None else input_tensor) + image

    def _reads_both(self, image: Tensor, beside: Tensor) -> bool:
        """Whether the shortcut, which reads an image as the first norm does, can read two."""
        product = self.conv_shortcut
        is_product = type(product) is OnePixel and product.weight.dtype == image.dtype == beside.dtype
        return is_product and is_drawing_in_half(image)

    def _is_plain(self) -> bool:
        """Whether it neither scales nor resizes, and adds the time's embedding; a VAE's blocks ("group") have none."""
        kinds = ("default", "group") if self.time_emb_proj is None else ("default",)
        is_plain = self.output_scale_factor == 1 and self.time_embedding_norm in kinds and not self.skip_time_act
        return is_plain and self.upsample is None and self.downsample is None

    def _folds(self) -> bool:
        """Whether the block's layers are plain; an adapter's wouldn't be."""
        norms, convs = (self.norm1, self.norm2), (self.conv1, self.conv2)
        has_plain_norms = all(type(norm) is NormWithSiLU for norm in norms)
        return has_plain_norms and all(type(conv) is nn.Conv2d and conv.bias is not None for conv in convs)

    def _drawn(self, image: Tensor, beside: Tensor | None, temb: Tensor | None) -> Tensor:
        """The same with biases added on the way (biases.py)."""
        if beside is not None:
            shortcut, image = self.conv_shortcut.joined(image, beside), self.norm1.joined(image, beside)
        else:
            shortcut, image = image if self.conv_shortcut is None else self.conv_shortcut(image), self.norm1(image)
        shift = self.conv1.bias[None]
        if self.time_emb_proj is not None:
            shift = shift + self.time_emb_proj(self.nonlinearity(temb))
        image = self.norm2.shifted(without_bias(self.conv1, image), shift)
        return total(shortcut, without_bias(self.conv2, self.dropout(image)), self.conv2.bias)

    def train(self, mode: bool = True) -> "ResidualBlock":
        super().train(mode)
        self.training = False
        return self


def keep_layouts(network: nn.Module) -> None:
    """Let a network's blocks be such; weights and names stay as they are."""
    for block in become(network, {Transformer2DModel: Transformer, ResnetBlock2D: ResidualBlock}):
        fold_biases(block)
        block.train(block.training)
