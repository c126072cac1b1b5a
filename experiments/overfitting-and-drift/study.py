"""How fidelity, copies, drift and obedience move with steps, learning rate and prior weight.

    python experiments/overfitting-and-drift/study.py --photos PHOTOS

PHOTOS holds <subject>/*.jpg (the DreamBooth dataset's layout). Each run is the ordinary command on pocket, measured
at six moments; a run that is there already is not trained again, so the study can be done in parts. Writes results.csv,
one line for each run and moment; curves.png, whose bands are 95% intervals of the mean over runs; samples.jpg; and
prints what the last update of the runs says, with the difference that the prior makes to pairs of runs.
"""

import argparse
import csv
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image, ImageDraw

from dreamlab.estimates import Estimate, estimate_mean
from dreamlab.runs import RunDirectory

HERE = Path(__file__).parent
SUBJECTS = {"dog": "dog", "dog8": "dog", "cat": "cat", "backpack_dog": "backpack"}
SEEDS, RATES, PRIORS, MOMENTS = (1, 2, 3), ("1.5e-5", "5e-5", "1.5e-4", "5e-4"), ("0", "0.5", "1"), 6
METRICS = {  # column -> title
    "eval/dino_near": "DINO (likeness)", "eval/copies": "copies", "eval/nearness": "nearness to photos",
    "eval/pres_change": "PRES - base", "eval/drift_class": "class drift", "eval/drift_unrelated": "unrelated drift",
    "eval/div": "DIV", "eval/words": "words obeyed", "probe/held_out_loss": "held-out loss / base",
}  # fmt: skip
Cell = tuple[str, int, str, str]  # subject, seed, lr, prior weight


def folder(cell: Cell, out: Path) -> Path:
    """The run directory of one cell of the grid."""
    subject, seed, lr, prior = cell
    return out / f"{subject}-seed{seed}-lr{lr}-prior{prior}"


def train(cell: Cell, photos: Path, out: Path) -> None:
    """One run in a process of its own; what goes wrong is told and stops nothing."""
    subject, seed, lr, prior = cell
    command = [
        sys.executable, "-m", "dreamlab.train", f"instance_dir={photos / subject}", f"class_word={SUBJECTS[subject]}",
        f"seed={seed}", f"lr={lr}", f"prior_weight={prior}", f"out={out}", f"name={folder(cell, out).name}",
        "logger=none", "prompts=[]", f"eval.moments={MOMENTS}", f"eval.probes={MOMENTS}", "eval.near=2",
        "eval.far=6", "eval.unrelated=4", "eval.images_per_prompt=2", "eval.class_images=8", "eval.steps=12",
        "data.holdout=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(folder(cell, out).name, "done" if done.returncode == 0 else done.stderr[-400:], flush=True)


def rows(cells: list[Cell], out: Path) -> list[dict[str, str | float]]:
    """A row for each moment of each finished run."""
    found: list[dict[str, str | float]] = []
    for cell in cells:
        run = RunDirectory(folder(cell, out))
        probes = {row["update"]: row for row in run.probes.rows()}
        about = dict(zip(("subject", "seed", "lr", "prior"), cell, strict=True))
        for row in run.evaluations.rows() if run.path.is_dir() and run.status().get("state") == "finished" else []:
            numbers = {**probes.get(row["update"], {}), **row}
            found.append({**about, "update": row["update"], **{key: round(numbers[key], 4) for key in METRICS}})
    return found


def mean(values: list[float]) -> Estimate:
    """Of runs, with the bootstrap's 95% interval, which takes runs as independent."""
    return estimate_mean(torch.tensor(values))


def draw(found: list[dict[str, str | float]], path: Path) -> None:
    """A panel for each metric and prior weight: a curve for each lr, its band over subjects and seeds."""
    figure, panels = plt.subplots(len(METRICS), len(PRIORS), figsize=(9, 2 * len(METRICS)), sharex=True, sharey="row")
    for (line, (key, title)), (column, prior) in itertools.product(enumerate(METRICS.items()), enumerate(PRIORS)):
        panel = panels[line][column]
        for lr in RATES:
            chosen = [row for row in found if (row["lr"], row["prior"]) == (lr, prior) and row[key] != ""]
            updates = sorted({int(row["update"]) for row in chosen})
            means = [mean([float(row[key]) for row in chosen if row["update"] == update]) for update in updates]
            panel.plot(updates, [one.value for one in means], label=f"lr {lr}")
            panel.fill_between(updates, [one.low or 0 for one in means], [one.high or 0 for one in means], alpha=0.2)
        panel.set_title(f"prior weight {prior}" if line == 0 else "", fontsize=9)
        panel.set_ylabel(title if column == 0 else "", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0][0].legend(fontsize=7)
    panels[-1][1].set_xlabel("update")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def draw_samples(out: Path, path: Path) -> None:
    """The last update of seed 1: for each subject a photo of it, a far context, and its class; the untouched on top."""
    picks = {"near": "0000", "far": "0008", "class": "0024"}
    rows = [("5e-5", "1", 0), *((lr, prior, 200) for lr in ("1.5e-5", "5e-5", "5e-4") for prior in ("1", "0"))]
    columns = list(itertools.product(SUBJECTS, picks))
    sheet = Image.new("RGB", (110 + 90 * len(columns), 30 + 92 * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, (subject, kind) in enumerate(columns):
        pen.text((110 + 90 * x, 4), f"{subject}\n{kind}", fill="black")
        for y, (lr, prior, update) in enumerate(rows):
            pen.text((4, 60 + 92 * y), f"lr {lr}\nprior {prior}" if update else "untouched", fill="black")
            shots = folder((subject, 1, lr, prior), out) / "eval" / f"update-{update:06d}"
            sheet.paste(Image.open(shots / f"{picks[kind]}.png").resize((88, 88)), (110 + 90 * x, 30 + 92 * y))
    sheet.save(path, quality=85)


def tell(found: list[dict[str, str | float]], update: int = 200) -> None:
    """Markdown: the mean of each cell at an update, and prior 1 minus prior 0 over runs that differ in nothing else."""

    def cell(key: str, lr: str, prior: str) -> dict[tuple[str, int], float]:
        chosen = [row for row in found if (row["lr"], row["prior"], row["update"]) == (lr, prior, update)]
        return {(str(row["subject"]), int(row["seed"])): float(row[key]) for row in chosen}

    print(f"| lr | prior | {' | '.join(METRICS.values())} |\n|{'---|' * (len(METRICS) + 2)}")
    for lr in RATES:
        for prior in PRIORS:
            means = [f"{mean(list(cell(key, lr, prior).values())).value:.2f}" for key in METRICS]
            print(f"| {lr} | {prior} | {' | '.join(means)} |")
        told = []
        for key in METRICS:
            with_prior, without = cell(key, lr, "1"), cell(key, lr, "0")
            apart = mean([with_prior[pair] - without[pair] for pair in with_prior.keys() & without.keys()])
            told.append(f"{apart.value:+.2f} ({apart.low or 0:+.2f} to {apart.high or 0:+.2f})")
        print(f"| {lr} | 1 - 0 | {' | '.join(told)} |")


def main() -> None:
    """Train what is missing, then write table and picture of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/overfitting-and-drift"))
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    cells = list(itertools.product(args.subjects, args.seeds, RATES, PRIORS))
    todo = [cell for cell in cells if RunDirectory(folder(cell, args.work)).status().get("state") != "finished"]
    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda cell: train(cell, args.photos, args.work), todo))
    found = rows(list(itertools.product(SUBJECTS, SEEDS, RATES, PRIORS)), args.work)
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, found[0].keys())
        writer.writeheader()
        writer.writerows(found)
    draw(found, HERE / "curves.png")
    draw_samples(args.work, HERE / "samples.jpg")
    tell(found)


if __name__ == "__main__":
    main()
