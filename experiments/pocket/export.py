"""Writes the trained networks as a diffusers folder in fp16, and as a tar cut in parts small enough to send."""

import copy
import tarfile
from pathlib import Path

import tokenizer as tokens
import torch
from denoise import Learner
from diffusers import AutoencoderKL, StableDiffusionPipeline
from networks import schedule
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

PART_BYTES = 15 * 2**20
MOST_BYTES = 24_000_000
CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: imagenet-terms-of-access
---
# pocket

A miniature Stable Diffusion: 64x64 px, {millions:.1f} million weights, trained from scratch in about twenty minutes
on one GPU. It exists to make DreamBooth fine-tuning testable on a laptop, not to make good pictures.

**Use.** `StableDiffusionPipeline.from_pretrained(folder)`; prompts such as "a photo of a dog", "a sepia photo of a
teapot", "a photo of a cat on a green background"; DDIM, 20 steps, guidance 4 to 5.

**What it knows.** {words}. Their breeds and kinds: {kinds}. Styles: {styles}. Background colours: {grounds}.
`{free}` and other short meaningless words are single tokens that no caption held: free names for subjects.

**Data and terms.** 13,000 training photos of Tiny-ImageNet-200 (64x64 px, a subset of ImageNet). The photos belong to
their authors; ImageNet's terms allow non-commercial research and education, and so should the use of these weights.
People appear in some photos by accident; no faces were selected for or labelled.

**Training.** {training}
The scripts, the figures and how they were measured are in `experiments/pocket/` of the project.

**Figures.** Autoencoder: 25.7 dB on 1,300 held-out photos. 98.8% of 1,000 samples are named right by a classifier
that names 72.9% of held-out photos right; style words are obeyed in 97.4% of samples ("upside down" in 46.7%),
background words in 98.2%. An update takes 0.16 s on two CPU cores, four pictures of 20 steps 2 s.

**Limits.** Shapes are approximate, small parts melt, text and people are unusable; anything outside the words above
is noise to it. The classifier that judges it saw the same training photos.
"""


def export(vae: AutoencoderKL, learner: Learner, tokenizer: CLIPTokenizer, card: str, folder: Path) -> None:
    """Saves the averaged weights under `folder` and checks their size."""
    networks = {"vae": vae, "unet": learner.average_unet, "text_encoder": learner.average_text}
    halves = {name: _half(network) for name, network in networks.items()}
    pipeline = StableDiffusionPipeline(
        **halves,
        tokenizer=tokenizer,
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    tokens.save(tokenizer, folder / "tokenizer")
    _as_published(folder / "text_encoder")
    (folder / "README.md").write_text(card)
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    if size > MOST_BYTES:
        raise SystemExit(f"{folder} holds {size:,} bytes of weights, over {MOST_BYTES:,}: make a network smaller.")


def _as_published(folder: Path) -> None:
    """Names the text encoder's weights as every published Stable Diffusion does, whatever transformers' version.

    Its config asks for float32, which transformers 5 follows, as diffusers loads the other networks in float32.
    """
    file, config = folder / "model.safetensors", folder / "config.json"
    weights = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def _half(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).cpu().to(torch.float16)
    for weight in network.parameters():
        weight.data = weight.data.contiguous()
    return network.eval()


def pack(folder: Path, into: Path) -> list[Path]:
    """A tar of `folder` as `into/pocket.tar.00`, `.01`, ... (`cat pocket.tar.* | tar x` unpacks it)."""
    whole = into / "pocket.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(folder, arcname="pocket")
    content = whole.read_bytes()
    whole.unlink()
    parts = []
    for i in range(0, len(content), PART_BYTES):
        parts.append(into / f"pocket.tar.{i // PART_BYTES:02d}")
        parts[-1].write_bytes(content[i : i + PART_BYTES])
    return parts
