"""Trains pocket's own encoders: what CLIP and DINO are for full-size models, at 64 px and a few megabytes.

    python experiments/pocket/encoders.py teacher --photos DIR --out DIR
    python experiments/pocket/encoders.py clip    --photos DIR --out DIR --tokenizer dreamlab/models/pocket/tokenizer
    python experiments/pocket/encoders.py dino    --photos DIR --out DIR

`clip` learns which caption belongs to a view (arXiv 2103.00020), with pocket's own styles, background colours and
meaningless words; identical captions in a batch are all right answers. `dino` learns breeds and kinds. Transformers
learn little from 13,000 photos, so both also imitate a convolutional teacher (arXiv 2012.12877). Each is an ordinary
transformers folder.
"""

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import classifier
import photos
import torch
import torch.nn.functional as F
from captions import caption
from clock import Clock
from photos import SIZE_PX, Photos
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel
from views import hide, styled_views, view

from dreamlab.words import BACKGROUNDS, STYLES

WIDTH, LAYERS, HEADS, PATCH_PX = 160, 5, 5, 8
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, SHARED_WIDTH = 128, 2, 4, 128
CAPTIONS_EACH = 64  # random captions of a kind under a style or background
TEMPERATURE = 0.15  # of instance discrimination
HEAD_SCALE = 16.0  # unit features reach the classifying layer this long
IMITATION = 1.0  # weight of the teacher's opinion
LR, DECAY, WARMUP = 1e-3, 0.1, 0.05
PREPROCESSING = {
    "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": SIZE_PX}, "resample": 1,
    "do_center_crop": True, "crop_size": {"height": SIZE_PX, "width": SIZE_PX}, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
Step = Callable[[Tensor], Tensor]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("teacher", "clip", "dino"))
    parser.add_argument("--photos", type=Path, required=True, help="folder with train/, see photos.read")
    parser.add_argument("--out", type=Path, required=True, help="where teacher, log and encoders go")
    parser.add_argument("--tokenizer", type=Path, help="pocket's, for clip")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--batch", type=int, default=1024, help="views an update")
    parser.add_argument("--instance-weight", type=float, default=0.0, help="of instance discrimination, for dino")
    parser.add_argument("--limit", type=int, help="photos per fine name (smoke tests)")
    parser.add_argument("--most-steps", type=int, help="updates (smoke tests)")
    return parser.parse_args()


class Captions:
    """Random captions of every kind under every condition, cut into tokens beforehand."""

    def __init__(self, data: Photos, tokenizer: CLIPTokenizer) -> None:
        rng = random.Random(5)
        kind_of = dict(zip(data.fine.tolist(), data.cls.tolist(), strict=True))
        conditions = [(None, None), *((s, None) for s in STYLES), *((None, b) for b in BACKGROUNDS)]
        said = [
            caption((name, data.class_words[kind_of[fine]]), style, ground, rng)
            for fine, name in enumerate(data.fine_names)
            for style, ground in conditions
            for _ in range(CAPTIONS_EACH)
        ]
        ids = tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.ids, which = (t.to(data.pixels.device) for t in ids.unique(dim=0, return_inverse=True))
        self.which = which.view(len(data.fine_names), len(conditions), CAPTIONS_EACH)

    def draw(self, fine: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Row of `ids` of a random caption for each photo, (B,)."""
        pick = torch.randint(0, CAPTIONS_EACH, fine.shape, generator=generator, device=fine.device)
        return self.which[fine, condition, pick]


def clip_step(model: CLIPModel, head: nn.Module, teacher: nn.Module, data: Photos, said: Captions) -> Step:
    """An update's loss: which caption is whose, both ways, and the teacher's opinion of the photo."""
    generator = torch.Generator(data.pixels.device).manual_seed(6)

    def loss(index: Tensor) -> Tensor:
        plain = view(data.batch(index), 0.45, generator)
        opinion = _opinion(teacher, plain)
        x, condition = styled_views(plain, generator)
        which = said.draw(data.fine[index], condition, generator)
        with _half(x.device):
            seen = model.visual_projection(model.vision_model(pixel_values=2 * hide(x, generator) - 1).pooler_output)
            told = model.text_projection(model.text_model(input_ids=said.ids[which]).pooler_output)
        seen, told = F.normalize(seen.float()), F.normalize(told.float())
        logits = model.logit_scale.clamp_max(math.log(100)).exp() * (seen @ told.T)
        right = (which[:, None] == which[None]).float()
        right = right / right.sum(1, keepdim=True)
        both = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        return both + IMITATION * imitate(head(HEAD_SCALE * seen), opinion)

    return loss


def dino_step(model: ViTModel, head: nn.Module, teacher: nn.Module, data: Photos, weight: float) -> Step:
    """An update's loss: breed or kind of two views of each photo, and the teacher's opinion of them.

    With a `weight`, also which two views are of one photo (instance discrimination, arXiv 2002.05709).
    """
    generator = torch.Generator(data.pixels.device).manual_seed(7)

    def loss(index: Tensor) -> Tensor:
        index = index[: len(index) // 2].repeat(2)
        x = view(data.batch(index), 0.3, generator)
        opinion = _opinion(teacher, x)
        with _half(x.device):
            seen = model(pixel_values=2 * hide(x, generator) - 1).last_hidden_state[:, 0]
        seen = F.normalize(seen.float())
        alike = (seen @ seen.T / TEMPERATURE).fill_diagonal_(-1e4)
        twin = torch.arange(len(index), device=x.device).roll(len(index) // 2)
        logits = head(HEAD_SCALE * seen)
        named = F.cross_entropy(logits, data.fine[index], label_smoothing=0.1) + IMITATION * imitate(logits, opinion)
        return weight * F.cross_entropy(alike, twin) + named

    return loss


def imitate(logits: Tensor, opinion: Tensor) -> Tensor:
    """Cross-entropy with the teacher's distribution."""
    return F.cross_entropy(logits, opinion.softmax(1))


def _opinion(teacher: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), _half(x.device):
        return teacher(x.contiguous(memory_format=torch.channels_last))[0].float()


def _half(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def dino() -> ViTModel:
    """DINO's shape, small; the feature is the class token of the last layer."""
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        image_size=SIZE_PX, patch_size=PATCH_PX,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False)


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIP's two towers, small."""
    text = {
        "hidden_size": TEXT_WIDTH, "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": TEXT_HEADS,
        "intermediate_size": 4 * TEXT_WIDTH, "vocab_size": len(tokenizer), "projection_dim": SHARED_WIDTH,
        "max_position_embeddings": tokenizer.model_max_length, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "patch_size": PATCH_PX,
        "intermediate_size": 4 * WIDTH, "image_size": SIZE_PX, "projection_dim": SHARED_WIDTH,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=SHARED_WIDTH))


def learn(loss: Step, modules: list[nn.Module], data: Photos, clock: Clock, batch: int) -> None:
    """AdamW while `clock` runs; the learning rate rises, then falls to zero with a cosine."""
    generator = torch.Generator(data.pixels.device).manual_seed(8)
    weights = [w for module in modules for w in module.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": DECAY},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LR, betas=(0.9, 0.98), fused=data.pixels.is_cuda)
    for fraction in clock:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, fraction / WARMUP) * 0.5 * (1 + math.cos(math.pi * fraction))
        index = torch.randperm(len(data.pixels), generator=generator, device=data.pixels.device)[:batch]
        now = loss(index)
        now.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.note(now)


def main() -> None:
    """Trains one part."""
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    folder, file = args.out / args.part, args.out / "teacher.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    data = photos.read(args.photos / "train", args.limit).to(device)
    clock = Clock(args.part, args.seconds, args.out / "log.jsonl", most_steps=args.most_steps)
    if args.part == "teacher":  # the classifier, of kinds instead of class words
        kinds = Photos(data.pixels, data.fine, data.fine, data.fine_names, data.fine_names)
        return classifier.save(classifier.train(kinds, device, clock, min(384, args.batch)), data.fine_names, file)
    teacher = classifier.load(file, device)[0].to(memory_format=torch.channels_last)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer) if args.part == "clip" else None
    model = (clip(tokenizer) if tokenizer else dino()).to(device).train()
    head = nn.Linear(SHARED_WIDTH if tokenizer else WIDTH, len(data.fine_names)).to(device)
    if tokenizer:
        loss = clip_step(model, head, teacher, data, Captions(data, tokenizer))
        tokenizer.save_pretrained(folder)
    else:
        loss = dino_step(model, head, teacher, data, args.instance_weight)
    learn(loss, [model, head], data, clock, args.batch)
    model.eval().half().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=1) + "\n")
    print(f"{args.part}: {clock.steps:,} updates of {args.batch} views")


if __name__ == "__main__":
    main()
