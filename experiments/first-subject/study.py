"""Teaches pocket the subjects of a folder, one run each, and measures which words the tuned models still obey.

    python experiments/first-subject/study.py --subjects FOLDER --out experiments/first-subject

`FOLDER` holds one folder of photos per subject. Runs go to outputs/first-subject, where a second call finds them again.
A style or a background counts as obeyed by the exact tests of dreamlab/words.py; the untouched model is
judged on the same prompts and seeds.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dreamlab.models import load
from dreamlab.pictures import grid
from dreamlab.sample import Sampler, draw
from dreamlab.words import obeys_background, obeys_style

# Folder of photos -> class word; only what pocket has a word for
SUBJECTS = {
    "cat": "cat", "dog": "dog", "dog2": "dog", "dog8": "dog",
    "backpack_dog": "backpack", "rc_car": "car", "teapot": "teapot",
}  # fmt: skip
STYLES = {"black and white": "a black and white photo of a {}", "purple": "a purple tinted photo of a {}"}
BACKGROUNDS = ("white", "black", "green", "blue")
SAMPLER = Sampler("ddim", 20, 5.0, "", 64, 64)
SEED, EACH = 1000, 8


def train(name: str, class_word: str, folder: Path, settings: list[str]) -> Path:
    """One run of the ordinary command, with its own defaults but for `settings`; returns its directory."""
    out = Path("outputs/first-subject")
    command = [
        sys.executable, "-m", "dreamlab.train", f"instance_dir={folder}", f"class_word={class_word}",
        "logger=none", "eval=none", "data.holdout=0", f"out={out}", f"name={name}", *settings,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return out / name


def pictures_of(source: str, prompts: list[str]) -> list[list[Image.Image]]:
    """EACH pictures of every prompt, from the same seeds for every model."""
    model, found = load("stable_diffusion", source), {}
    pairs = [(prompt, SEED + k) for prompt in prompts for k in range(EACH)]
    draw(
        model, [prompt for prompt, _ in pairs], [seed for _, seed in pairs], SAMPLER,
        device=torch.device("cpu"), precision="fp32", batch_size=8, on_image=found.__setitem__,
    )  # fmt: skip
    return [[found[i * EACH + k] for k in range(EACH)] for i in range(len(prompts))]


def pixels(images: list[Image.Image]) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]."""
    return torch.stack([torch.tensor(list(image.getdata())).T.reshape(3, 64, 64) / 255 for image in images])


def asked(noun: str) -> list[str]:
    """Every prompt that is measured, styles first."""
    styles = [words.format(noun) for words in STYLES.values()]
    return styles + [f"a photo of a {noun} on a {colour} background" for colour in BACKGROUNDS]


def obeyed(drawn: list[list[Image.Image]]) -> dict[str, float]:
    """Share of the pictures of each word that obey it, in the order of `asked`."""
    shares = {}
    for style, images in zip(STYLES, drawn, strict=False):
        shares[style] = obeys_style(pixels(images), style).float().mean().item()
    for colour, images in zip(BACKGROUNDS, drawn[len(STYLES) :], strict=True):
        shares[f"{colour} background"] = obeys_background(pixels(images), colour).float().mean().item()
    return shares


def study(subjects: Path, out: Path, settings: list[str]) -> None:
    """Train, draw, measure, and write results.json and subjects.jpg to `out`."""
    results, rows = {}, []
    for name, class_word in SUBJECTS.items():
        run = train(name, class_word, subjects / name, settings)
        plain = [f"a photo of a zwx {class_word}", f"a photo of a {class_word}"]
        base, tuned = (
            pictures_of(source, plain + asked(f"zwx {class_word}")) for source in ("pocket", str(run / "model"))
        )
        results[name] = {"base model": obeyed(base[2:]), "tuned": obeyed(tuned[2:])}
        rows.append((name, [*base[0][:2], *tuned[0][:3], *(images[0] for images in tuned[2:]), *tuned[1][:2]]))
        print(name, results[name], flush=True)
    columns = ["base: a photo of a zwx <class>", "", "tuned: a photo of a zwx <class>", "", ""]
    columns += [*STYLES, *(f"on a {colour} background" for colour in BACKGROUNDS), "tuned: a photo of a <class>", ""]
    grid(rows, columns, tile_px=110).convert("RGB").save(out / "subjects.jpg", quality=80)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=Path, required=True, help="folder with one folder of photos per subject")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("settings", nargs="*", help="settings of the runs, such as lr=2e-5")
    given = parser.parse_args()
    study(given.subjects, given.out, given.settings)
