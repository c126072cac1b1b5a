"""One subject, one budget of updates, six ways to teach it: what each gives, what it costs, and how large it is.

    python experiments/methods/study.py --photos PHOTOS --work outputs/methods

PHOTOS is the DreamBooth dataset: a folder for each subject. Each sweep is the ordinary command on pocket with two or
three learning rates; a command that is repeated trains only what is missing. Of each method the run is taken whose
held-out photo is denoised best at the end: a number that none of the table's others is. Writes results.csv, a line for
each run, and methods.jpg, a row for each method, and prints the table.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dreamlab.pictures import grid
from dreamlab.runs import RunDirectory

HERE = Path(__file__).parent
STEPS = 100
SWEEPS = (
    ("adapter=full", "lr=5e-5,1e-4"),
    ("adapter=lora", "adapter.rank=2,8,32", "lr=3e-4,1e-3"),
    ("adapter=textual_inversion", "adapter.vectors=1,4", "lr=5e-3,2e-2"),
    ("adapter=pivotal", "lr=3e-4,1e-3"),
)
BUDGET = (
    f"steps={STEPS}", "class_word=dog", "data.holdout=1", "eval.near=2", "eval.far=4", "eval.unrelated=2",
    "eval.images_per_prompt=2", "eval.class_images=4", "eval.steps=12", "eval.moments=1", "eval.probes=1",
    "logger=none", "prompts=[]", "device=cpu",
)  # fmt: skip
METRICS = {  # column -> title
    "eval/dino": "DINO (likeness)", "eval/nearness": "nearness to photos", "eval/words": "words obeyed",
    "eval/clip_t": "CLIP-T", "eval/drift_class": "class drift", "eval/drift_unrelated": "unrelated drift",
    "probe/train_loss": "loss on photos", "probe/held_out_loss": "held-out loss",
}  # fmt: skip
SHOWN = {"near": (0, 2), "far": (0, 2, 4, 6), "class": (0,), "unrelated": (0,)}  # places among the shots of a kind
ORDER = ("full", "LoRA", "textual inversion", "pivotal")
Row = dict[str, Any]


def method_of(adapter: Mapping[str, Any]) -> str:
    """What a run's adapter is called in the table."""
    kind, rank, vectors = adapter["kind"], adapter["rank"], adapter["vectors"]
    if kind == "textual_inversion":
        return f"textual inversion, {vectors} row{'s' if vectors > 1 else ''}"
    return {"full": "full", "lora": f"LoRA, rank {rank}", "pivotal": f"pivotal, rank {rank}"}[kind]


def runs(work: Path) -> Iterator[RunDirectory]:
    """The finished runs."""
    for file in sorted((work / "runs").glob("*/status.json")):
        run = RunDirectory(file.parent)
        if run.status().get("state") == "finished":
            yield run


def row_of(run: RunDirectory) -> Row:
    """A run's last numbers, the size of what it left, and how long its updates took."""
    config, metrics = run.read_config(), run.read_metrics()
    halves = 2 if config["prior_weight"] > 0 else 1
    speeds = sorted(row["perf/images_per_s"] for row in metrics)
    size = sum(file.stat().st_size for file in run.model.rglob("*.safetensors"))
    numbers = {**run.probes.rows()[-1], **run.evaluations.rows()[-1]}
    return {
        "method": method_of(config["adapter"]), "lr": config["lr"],
        **{key: round(numbers[key], 3) + 0.0 for key in METRICS},  # no -0
        "kilobytes": round(size / 1000, 1),
        "train_s": round(len(metrics) * config["batch_size"] * halves / speeds[len(speeds) // 2], 1),
        "run": run.path.name,
    }  # fmt: skip


def chosen(rows: list[Row]) -> list[Row]:
    """The run of each method that denoises the held-out photo best."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return [
        min((row for row in rows if row["method"] == name), key=lambda row: row["probe/held_out_loss"])
        for name in methods
    ]


def draw(rows: list[Row], work: Path, path: Path) -> None:
    """The same prompts and noise for the untouched model and for each method."""

    def pictures(run: RunDirectory, update: int) -> tuple[list[str], list[Image.Image]]:
        shots = run.evaluated / f"update-{update:06d}"
        told = json.loads((shots / "scores.json").read_text())["shots"]
        of_kind = {kind: [shot for shot in told if shot["kind"] == kind] for kind in SHOWN}
        picked = [of_kind[kind][place] for kind, places in SHOWN.items() for place in places]
        return [shot["prompt"] for shot in picked], [Image.open(shots / shot["file"]) for shot in picked]

    places = [RunDirectory(work / "runs" / row["run"]) for row in rows]
    titles, untouched = pictures(places[0], 0)
    tiles = [
        (f"{row['method']}, lr {row['lr']:g}", pictures(run, STEPS)[1]) for row, run in zip(rows, places, strict=True)
    ]
    grid([("untouched", untouched), *tiles], titles, tile_px=104).convert("RGB").save(path, quality=85)


def tell(rows: list[Row]) -> None:
    """Markdown: a line for each method."""
    print(f"| method | lr | {' | '.join(METRICS.values())} | kB | s |\n|{'---|' * (len(METRICS) + 4)}")
    for row in rows:
        numbers = [f"{row[key]:.2f}" for key in METRICS]
        print(f"| {row['method']} | {row['lr']:g} | {' | '.join(numbers)} | {row['kilobytes']} | {row['train_s']} |")


def main() -> None:
    """Train what is missing, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/methods"))
    args = parser.parse_args()
    for number, words in enumerate(SWEEPS):
        places = [f"out={args.work / 'runs'}", f"hydra.sweep.dir={args.work / f'sweep-{number}'}"]
        command = [sys.executable, "-m", "dreamlab.train", "-m", *words, *BUDGET, *places]
        done = subprocess.run([*command, f"instance_dir={args.photos / 'dog'}"], check=False)
        print(" ".join(words), "is done" if done.returncode == 0 else "failed", flush=True)
    found = [row_of(run) for run in runs(args.work)]
    rows = sorted(found, key=lambda row: (ORDER.index(row["method"].split(",")[0]), row["kilobytes"], row["lr"]))
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(chosen(rows), args.work, HERE / "methods.jpg")
    tell(chosen(rows))


if __name__ == "__main__":
    main()
