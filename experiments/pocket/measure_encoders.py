"""Measures pocket's own encoders on photos they never saw, loaded as a user loads them.

    python experiments/pocket/measure_encoders.py --photos DIR --subjects DIR --out experiments/pocket/encoders.json

`--photos` holds val/ (see photos.read), `--subjects` a folder of photos for each subject, such as those of the
DreamBooth data set. Everything runs on a CPU. Subjects are brought to pocket's 64 px first, as samples are.
"""

import argparse
import json
from pathlib import Path

import photos
import torch
from captions import prompt
from PIL import Image
from torch import Tensor

from dreamlab.data import crop, list_images, read_photo
from dreamlab.encoders import Encoder, load
from dreamlab.estimates import estimate_mean
from dreamlab.metrics import cosine
from dreamlab.words import BACKGROUNDS, STYLES, obeys_background

NAMES = ("pocket-clip", "pocket-dino")


def pictures(x: Tensor) -> list[Image.Image]:
    """Pillow's images of (N, 3, H, W) in [0, 1]."""
    return [Image.fromarray(one) for one in (x * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def share(hits: Tensor) -> dict[str, float | None]:
    """Mean of booleans with its 95% interval over pictures."""
    estimate = estimate_mean(hits.float())
    return {"value": _round(estimate.value), "low": _round(estimate.low), "high": _round(estimate.high)}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def zero_shot(clip: Encoder, features: Tensor, prompts: list[str], right: Tensor) -> dict[str, float | None]:
    """How often the right prompt is the most similar one."""
    return share(cosine(features, clip.texts(prompts)).argmax(1) == right)


def clip_figures(clip: Encoder, held_out: photos.Photos) -> dict:
    """Zero-shot class words, kinds, styles and backgrounds; retrieval between photos and captions."""
    x = held_out.batch(torch.arange(len(held_out.pixels)))
    plain = clip.images(pictures(x))
    found = {
        "class words": zero_shot(clip, plain, [prompt(word) for word in held_out.class_words], held_out.cls),
        "kinds": zero_shot(clip, plain, [prompt(word) for word in held_out.fine_names], held_out.fine),
    }
    asked = [clip.texts([prompt(w, style=s) for w in held_out.class_words])[held_out.cls] for s in (None, *STYLES)]
    styled, hits = [plain], []
    for number, style in enumerate([None, *STYLES]):
        features = plain if style is None else clip.images(pictures(photos.apply_style(x, style)))
        styled += [] if style is None else [features]
        hits.append(torch.stack([(features * text).sum(1) for text in asked]).argmax(0) == number)
        found[f"style: {style or 'none'}"] = share(hits[-1])
    found["styles"] = share(torch.stack(hits).float().mean(0))
    found["backgrounds"] = _backgrounds(clip, x, plain, held_out)
    found["retrieval"] = _retrieval(clip, held_out, torch.stack(styled))
    return found


def _backgrounds(clip: Encoder, x: Tensor, features: Tensor, held_out: photos.Photos) -> dict[str, float | None]:
    """Of photos whose border has exactly one of the colours, how often that colour's prompt is nearest."""
    has = torch.stack([obeys_background(x, colour) for colour in BACKGROUNDS], 1)
    clear = has.sum(1) == 1
    asked = [clip.texts([prompt(w, background=c) for w in held_out.class_words])[held_out.cls] for c in BACKGROUNDS]
    scores = torch.stack([(features * text).sum(1) for text in asked], 1)
    return share((scores.argmax(1) == has.float().argmax(1))[clear])


def _retrieval(clip: Encoder, held_out: photos.Photos, styled: Tensor) -> dict:
    """Every (kind, style) has one caption; a photo in a random style is looked up by it, and the other way round."""
    conditions = [None, *STYLES]
    captions = [prompt(kind, style=style) for kind in held_out.fine_names for style in conditions]
    which = torch.randint(len(conditions), (len(held_out.fine),), generator=torch.Generator().manual_seed(0))
    features = styled[which, torch.arange(len(which))]
    right = held_out.fine * len(conditions) + which
    scores = cosine(features, clip.texts(captions))
    asked = [i for i in range(len(captions)) if (right == i).any()]
    by_text = torch.tensor([right[scores[:, i].argmax()] == i for i in asked])
    top = scores.topk(5, dim=1).indices
    return {
        "captions": len(captions),
        "photo to caption": share(top[:, 0] == right),
        "photo to caption, among 5": share((top == right[:, None]).any(1)),
        "caption to photo": share(by_text),
    }


def subject_figures(encoder: Encoder, folder: Path) -> dict:
    """Is the nearest other photo of the same subject; mean cosines within a subject, its class and beyond."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    images, who = [], []
    for number, name in enumerate(names):
        read = [crop(read_photo(path), photos.SIZE_PX) / 2 + 0.5 for path in list_images(folder / name)]
        images += pictures(torch.stack(read))
        who += [number] * len(read)
    features, label = encoder.images(images), torch.tensor(who)
    alike = cosine(features, features)
    same = (label[:, None] == label[None]).fill_diagonal_(False)
    other = label[:, None] != label[None]
    is_dog = torch.tensor([names[i].startswith("dog") for i in who])
    other_dog = other & is_dog[:, None] & is_dog[None]
    nearest = alike.clone().fill_diagonal_(-1).argmax(1)
    return {
        "photos": len(images),
        "subjects": len(names),
        "nearest is the same subject": share(label[nearest] == label),
        "cosine, same subject": _round(alike[same].mean().item()),
        "cosine, another subject": _round(alike[other].mean().item()),
        "cosine, another dog": _round(alike[other_dog].mean().item()),
        "same above another": _round(_above(alike[same], alike[other])),
        "same dog above another dog": _round(_above(alike[same & is_dog[:, None]], alike[other_dog])),
    }


def _above(one: Tensor, other: Tensor) -> float:
    """Chance that a value of `one` exceeds one of `other`: 0.5 tells nothing, 1 everything."""
    return (one[:, None] > other[None]).float().mean().item()


def neighbour_figures(encoder: Encoder, held_out: photos.Photos) -> dict:
    """How often the nearest other held-out photo is of the same kind or class word."""
    features = encoder.images(pictures(held_out.batch(torch.arange(len(held_out.pixels)))))
    nearest = cosine(features, features).fill_diagonal_(-1).argmax(1)
    return {
        "nearest is the same kind": share(held_out.fine[nearest] == held_out.fine),
        "nearest is the same class word": share(held_out.cls[nearest] == held_out.cls),
    }


def main() -> None:
    """All figures of both encoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "subjects", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    held_out = photos.read(args.photos / "val")
    results = {}
    for name in NAMES:
        encoder = load(name)
        results[name] = {
            "recipe": encoder.recipe(),
            "held-out photos": neighbour_figures(encoder, held_out),
            "subjects": subject_figures(encoder, args.subjects),
        }
    results["pocket-clip"]["words"] = clip_figures(load("pocket-clip"), held_out)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
