"""A small residual network that names the class word of a photo and says whether it stands upright.

It is the judge of the samples, the perceptual loss of the VAE (features, as LPIPS does: arXiv 1801.03924) and the
measure of "upside down". It sees only the training photos; its own held-out accuracy is reported beside its verdicts.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from clock import Clock
from photos import Photos, blur, flip_and_shift
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamlab.words import luma

WIDTHS = (40, 80, 160, 320)


class Block(nn.Module):
    """Two 3x3 convolutions with a residual path; the first may halve the resolution."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)])
        self.short = nn.Conv2d(inner, outer, 1, stride, bias=False) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) -> (B, outer, H/stride, W/stride)."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.short(x))


class Classifier(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] -> logits of the class words (B, C) and of upright/upside down (B, 2)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, 1, 1)
        widths = (WIDTHS[0], *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 1 if i == 0 else 2), Block(b, b, 1))
            for i, (a, b) in enumerate(zip(widths, WIDTHS, strict=False))
        )
        self.name = nn.Linear(WIDTHS[-1], num_classes)
        self.upright = nn.Linear(WIDTHS[-1], 2)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each stage, from 64x64 to 8x8."""
        x, found = self.stem(2 * x - 1), []
        for stage in self.stages:
            found.append(x := stage(x))
        return found

    def embedding(self, x: Tensor) -> Tensor:
        """(B, 320), unit length: for nearest neighbours."""
        return F.normalize(self.features(x)[-1].mean((2, 3)), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of names and of orientation."""
        pooled = F.dropout(self.features(x)[-1].mean((2, 3)), 0.2, self.training)
        return self.name(pooled), self.upright(pooled)


def perceptual(judge: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of unit-normalised features of the first three stages."""
    with torch.no_grad():
        wanted = judge.features(y)[:3]
    pairs = zip(judge.features(x)[:3], wanted, strict=True)
    return sum((F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in pairs)


def disturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """Training views: flipped, shifted, zoomed, recoloured, sometimes gray, blurred or partly hidden."""
    n, device = len(x), x.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator, device=device)

    x = flip_and_shift(x, 6, generator)
    scale, angle = draw(0.75, 1.1)[:, 0, 0, 0], draw(-0.2, 0.2)[:, 0, 0, 0]
    turn = torch.stack([angle.cos() * scale, -angle.sin(), angle.sin(), angle.cos() * scale], 1).view(n, 2, 2)
    grid = F.affine_grid(torch.cat([turn, torch.zeros(n, 2, 1, device=device)], 2), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = torch.where(draw(0, 1) < 0.15, luma(x).expand_as(x), x)
    x = torch.where(draw(0, 1) < 0.1, blur(x, 1.0), x)
    x = luma(x) + (x - luma(x)) * draw(0.6, 1.4)
    x = ((x - 0.5) * draw(0.7, 1.3) + 0.5 + draw(-0.15, 0.15)).clamp(0, 1)
    rows = torch.arange(x.shape[2], device=device)
    top, left = draw(-16, 80)[:, :, 0, 0], draw(-16, 80)[:, :, 0, 0]
    hidden = ((rows - top).abs() < 10)[:, :, None] & ((rows - left).abs() < 10)[:, None, :]
    return torch.where(hidden[:, None], 0.5, x)


def train(photos: Photos, device: torch.device, clock: Clock, batch: int = 384, lr: float = 2e-3) -> Classifier:
    """Trains while `clock` (see train.py) runs; the learning rate falls to zero with it."""
    generator = torch.Generator(device).manual_seed(1)
    net = Classifier(len(photos.class_words)).to(device, memory_format=torch.channels_last).train()
    balance = 1 / torch.bincount(photos.cls).float().sqrt()[photos.cls]
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.05, fused=device.type == "cuda")
    for fraction in clock:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, fraction / 0.05) * 0.5 * (1 + math.cos(math.pi * fraction))
        index = torch.multinomial(balance, batch, replacement=True, generator=generator)
        x, names = disturb(photos.batch(index), generator), photos.cls[index]
        down = torch.rand(batch, generator=generator, device=device) < 0.3
        x = torch.where(down[:, None, None, None], x.rot90(2, (2, 3)), x)
        mix = torch.rand((), generator=generator, device=device) * 0.5  # mixup, arXiv 1710.09412, with a neighbour
        x = x.lerp(x.roll(1, 0), mix).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            named, turned = net(x)
        loss = (1 - mix) * _loss(named, turned, names, down) + mix * _loss(named, turned, names.roll(1), down.roll(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.note(loss)
    return net.eval().requires_grad_(False)


def _loss(named: Tensor, turned: Tensor, names: Tensor, down: Tensor) -> Tensor:
    name_loss = F.cross_entropy(named.float(), names, label_smoothing=0.05)
    return name_loss + 0.5 * F.cross_entropy(turned.float(), down.long())


@torch.no_grad()
def judge(net: Classifier, x: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Class word (N,) and whether upside down (N,) bool, mean over the picture and its mirror image."""
    names, turned = [], []
    for part in x.split(batch):
        views = [net(part), net(part.flip(3))]
        names.append(sum(n.float().softmax(1) for n, _ in views).argmax(1))
        turned.append(sum(t.float().softmax(1) for _, t in views).argmax(1) == 1)
    return torch.cat(names), torch.cat(turned)


def save(net: Classifier, class_words: list[str], file: Path) -> None:
    """fp16 safetensors; the class words go in its metadata."""
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(weights, file, {"class_words": ",".join(class_words)})


def load(file: Path, device: torch.device) -> tuple[Classifier, list[str]]:
    """The network in float32 and its class words."""
    with safe_open(file, "pt") as stored:
        words = stored.metadata()["class_words"].split(",")
        weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
    net = Classifier(len(words))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval().requires_grad_(False).to(device), words
