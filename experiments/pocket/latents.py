"""The pool of latents that the denoiser learns from: every photo in many views, each view with its caption.

Encoding and captioning are paid once, before the training: plain views (mirrored, moved by up to 2 px), the styled
views of `photos.apply_style`, and extra views of the photos whose border has a clear colour. A view's share of the
pool is its share of the training.
"""

import random
from dataclasses import dataclass

import torch
from captions import caption
from diffusers import AutoencoderKL
from photos import Photos, apply_style, flip_and_shift
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from dreamlab.words import BACKGROUNDS, STYLES, border_colours

PLAIN_ROUNDS, STYLE_ROUNDS, BACKGROUND_ROUNDS = 32, 1, 22
CLEAR_SHARE = 0.6  # of the border's pixels, for a background word to be said
SAID_SHARE = 0.3  # of the plain views of such a photo, with the word


@dataclass
class Pool:
    """`latents` (N, 8, 16, 16) bf16 of unit std; `token_ids` (K, 24), one row a distinct caption; `caption` (N,)."""

    latents: Tensor
    token_ids: Tensor
    caption: Tensor
    empty: Tensor  # (24,) the ids of ""

    def draw(self, batch: int, empty_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents (B, 8, 16, 16) float32 and their token ids (B, 24), some of them empty captions."""
        device = self.latents.device
        index = torch.randint(0, len(self.latents), (batch,), generator=generator, device=device)
        is_empty = torch.rand(batch, 1, generator=generator, device=device) < empty_share
        return self.latents[index].float(), torch.where(is_empty, self.empty, self.token_ids[self.caption[index]])


def build(photos: Photos, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scale: float = 1.0) -> Pool:
    """Encodes the views; `scale` < 1 makes fewer rounds (smoke tests)."""
    generator = torch.Generator(photos.pixels.device).manual_seed(3)
    rng = random.Random(3)
    ground = backgrounds(photos)
    clear = (ground >= 0).nonzero()[:, 0]
    everyone = torch.arange(len(photos.pixels), device=photos.pixels.device)
    rounds = [(None, everyone, SAID_SHARE)] * max(1, int(PLAIN_ROUNDS * scale))
    rounds += [(style, everyone, 0.0) for style in STYLES] * STYLE_ROUNDS
    rounds += [(None, clear, 1.0)] * max(1, int(BACKGROUND_ROUNDS * scale))
    latents, said = [], []
    for style, chosen, said_share in tqdm(rounds, desc="latents", mininterval=2):
        latents.append(_encode(photos, vae, chosen, style, generator))
        said += _captions(photos, chosen, style, ground, said_share, rng)
    distinct = sorted(set(said))
    row = {words: i for i, words in enumerate(distinct)}
    ids = tokenizer([*distinct, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    ids = ids.to(photos.pixels.device)
    which = torch.tensor([row[words] for words in said], device=ids.device)
    return Pool(torch.cat(latents), ids[:-1], which, ids[-1])


def backgrounds(photos: Photos) -> Tensor:
    """Index into BACKGROUNDS of each photo's clear border colour, or -1, (N,)."""
    parts = torch.arange(len(photos.pixels), device=photos.pixels.device).split(1000)
    share, colour = torch.cat([border_colours(photos.batch(i)) for i in parts]).max(1)
    return torch.where(share > CLEAR_SHARE, colour, -1)


@torch.no_grad()
def _encode(
    photos: Photos, vae: AutoencoderKL, chosen: Tensor, style: str | None, generator: torch.Generator
) -> Tensor:
    found = []
    for index in chosen.split(1000):
        x = flip_and_shift(photos.batch(index), 2, generator)
        x = apply_style(x, style) if style else x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            posterior = vae.encode((2 * x - 1).contiguous(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=x.device)
        sample = posterior.mean.float() + posterior.std.float() * noise
        found.append((sample * vae.config.scaling_factor).bfloat16().contiguous())
    return torch.cat(found)


def _captions(
    photos: Photos, chosen: Tensor, style: str | None, ground: Tensor, said_share: float, rng: random.Random
) -> list[str]:
    said = []
    for fine, cls, colour in zip(*(t[chosen].tolist() for t in (photos.fine, photos.cls, ground)), strict=True):
        speaks = colour >= 0 and rng.random() < said_share
        nouns = (photos.fine_names[fine], photos.class_words[cls])
        said.append(caption(nouns, style, BACKGROUNDS[colour] if speaks else None, rng))
    return said
