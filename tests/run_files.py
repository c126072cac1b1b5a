"""Writes the files of plausible runs without training any: what the pages are drawn from in their tests."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import noise_picture
from omegaconf import OmegaConf
from PIL import Image, ImageEnhance

from dreamlab.pictures import save_png
from dreamlab.runs import RunDirectory, write_json

PROMPTS = (
    ("a photo of a zwx cat", "near"),
    ("a photo of a zwx cat on a blue background", "far"),
    ("a photo of a cat", "class"),
    ("a photo of a school bus", "unrelated"),
)


def shots_of(prompts: Sequence[tuple[str, str]], seeds: int, token: str = "zwx") -> list[dict[str, Any]]:
    """One shot for each prompt and seed."""
    pairs = [(prompt, kind, seed) for prompt, kind in prompts for seed in range(7, 7 + seeds)]
    return [
        {"prompt": prompt, "kind": kind, "seed": seed, "concept": 0, "token": token, "file": f"{number:04d}.png"}
        for number, (prompt, kind, seed) in enumerate(pairs)
    ]


def with_interval(name: str, value: float, width: float) -> dict[str, float]:
    return {f"eval/{name}": value, f"eval/{name}_low": value - width, f"eval/{name}_high": value + width}


def evaluation(update: int, lr: float = 5e-5) -> dict[str, float]:
    """Scores that rise with what was learnt and, past update 200 or so, pay for it."""
    learnt = 1 - math.exp(-update * lr / 5e-3)
    harm = learnt**3
    return {
        "update": update,
        **with_interval("dino", 0.31 + 0.4 * learnt, 0.04), **with_interval("clip_i", 0.6 + 0.22 * learnt, 0.03),
        **with_interval("clip_t", 0.31 - 0.05 * harm, 0.01), **with_interval("words", 0.8 - 0.4 * harm, 0.15),
        **with_interval("pres", 0.42 + 0.2 * harm, 0.05), **with_interval("pres_change", 0.2 * harm, 0.03),
        **with_interval("div", 0.5 - 0.2 * harm, 0.05), **with_interval("drift_class", 0.4 * harm, 0.04),
        **with_interval("drift_unrelated", 0.2 * harm, 0.03), **with_interval("collapse", 1 - 0.4 * harm, 0.1),
        "eval/copies": round(max(0.0, harm - 0.5), 2), "eval/nearness": learnt - 0.6, "eval/pres_base": 0.42,
        "eval/dino_photos": 0.74,
    }  # fmt: skip


def probe(update: int, lr: float = 5e-5) -> dict[str, float]:
    learnt = 1 - math.exp(-update * lr / 5e-3)
    return {
        "update": update, "probe/train_loss": 1 - 0.4 * learnt,
        "probe/held_out_loss": 1 - 0.3 * learnt + 0.2 * learnt**3,
        "probe/class_loss": 1 + 0.1 * learnt**2, "probe/class_drift": 0.05 * learnt,
        "probe/unrelated_drift": 0.02 * learnt, "probe/empty_drift": 0.01 * learnt,
    }  # fmt: skip


def training(steps: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    rows = []
    for update in range(1, steps + 1):
        instance, prior = 0.12 + 0.1 * math.exp(-update / 80) + 0.05 * rng.random(), 0.15 + 0.05 * rng.random()
        quarter = int(rng.integers(1, 5))
        rows.append({
            "update": update, "train/loss": instance + prior,
            "train/loss_instance": instance, "train/loss_prior": prior,
            f"train/loss_instance_q{quarter}": instance / quarter, f"train/loss_prior_q{quarter}": prior / quarter,
            "train/lr_unet": 5e-5, "perf/images_per_s": 11.5, "perf/peak_gib": 1.4,
        })  # fmt: skip
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw_moment(folder: Path, shots: Sequence[Mapping[str, Any]], strength: float, side_px: int) -> None:
    """A picture for each shot: noise of its own, the more coloured the more was learnt."""
    for number, shot in enumerate(shots):
        image = ImageEnhance.Color(noise_picture(number, (side_px, side_px))).enhance(0.4 + strength)
        save_png(image, folder / f"{number:04d}.png", {"prompt": shot["prompt"], "seed": shot["seed"]})


def scored(shots: Sequence[Mapping[str, Any]], numbers: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = []
    for number, shot in enumerate(shots):
        row = {**shot, "drift": numbers["eval/drift_class"]}
        if shot["kind"] in ("near", "far"):
            row |= {
                "dino": numbers["eval/dino"], "clip_i": numbers["eval/clip_i"], "clip_t": numbers["eval/clip_t"],
                "nearest_photo": number % 3, "similarity": 0.8, "p_value": 0.3, "is_copy": False,
            }  # fmt: skip
        if "blue" in str(shot["prompt"]):
            row["words"] = {"blue": number % 2 == 0}
        rows.append(row)
    if numbers["eval/copies"] > 0:
        rows[0] |= {"is_copy": True, "p_value": 0.0001, "similarity": 0.98}
    return rows


def write_run(
    path: Path, *, lr: float = 5e-5, steps: int = 400, moments: Sequence[int] = (0, 100, 200, 300, 400),
    keep: int | None = 200, state: str = "good", sentence: str = "Update 200 is the one to keep.", side_px: int = 64,
    prompts: Sequence[tuple[str, str]] = PROMPTS, seeds: int = 2, settings: Mapping[str, Any] | None = None,
) -> RunDirectory:  # fmt: skip
    """A finished run with every file."""
    run = RunDirectory(path)
    path.mkdir(parents=True)
    config = {"lr": lr, "steps": steps, "class_word": "cat", "token": "zwx", "batch_size": 2,
              "model": {"source": "pocket", "lr": 5e-5, "steps": 200, "batch_size": 2}, **(settings or {})}  # fmt: skip
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    card = {"instance_prompt": "a photo of a zwx cat", "command": "dreamlab.train name=demo", "gpu": None,
            "started": "2030-01-02T03:04:05+00:00", "platform": "Linux", "versions": {"torch": "2.13.0"}}  # fmt: skip
    write_json(run.card, card)
    run.set_status("finished", update=steps, seconds=61.0)
    write_lines(run.metrics, training(steps))
    write_lines(path / "probes.jsonl", [probe(update, lr) for update in range(0, steps + 1, max(1, steps // 8))])
    write_lines(path / "evaluations.jsonl", [evaluation(update, lr) for update in moments])
    shots = shots_of(prompts, seeds)
    for update in moments:
        folder, numbers = path / "eval" / f"update-{update:06d}", evaluation(update, lr)
        draw_moment(folder, shots, numbers["eval/drift_class"] * 4, side_px)
        if update:
            write_json(folder / "scores.json", {"update": update, "recipe": {}, "shots": scored(shots, numbers)})
    for update in (moments[0], moments[-1]):
        draw_moment(run.samples / f"update-{update:06d}", shots[:4], update / 200, side_px)
    for number in range(3):
        save_photo(noise_picture(90 + number), path / "eval" / "photos" / f"0-{number:04d}.png")
    save_photo(noise_picture(99), path / "eval" / "photos" / "0-held-0000.png")
    run.model.mkdir()
    for update in moments[1:-1]:
        (run.snapshots / f"update-{update:06d}").mkdir(parents=True)
    reasons = ["DINO is within 0.03 of its best.", "No sample is a copy."]
    write_json(path / "verdict.json", {"sentence": sentence, "state": state, "keep": keep, "rules": {},
                                       "reasons": reasons})  # fmt: skip
    return run


def save_photo(image: Image.Image, path: Path) -> None:
    save_png(image, path, {})
