"""One dog and one object, learning rate x steps: where each is learnt, where it is overdone, and which run to keep.

    python experiments/lr-x-steps/study.py --photos PHOTOS --out outputs/lr-x-steps

PHOTOS is the DreamBooth dataset: a folder for each subject. Two sweeps of 16 runs, four trainings each, side by side;
a command that is repeated trains only what is missing.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

SUBJECTS = {"dog2": "dog", "rc_car": "car"}
GRID = ("lr=2e-5,5e-5,1e-4,2e-4", "steps=50,100,200,400")
MEASURED = (
    "eval.near=2", "eval.far=6", "eval.unrelated=4", "eval.images_per_prompt=2", "eval.class_images=8",
    "eval.steps=12", "eval.moments=1", "data.holdout=1", "logger=none", "prompts=[]",
)  # fmt: skip


def sweep(subject: str, photos: Path, out: Path) -> "subprocess.Popen[bytes]":
    """Start the sweep of one subject."""
    words = [f"instance_dir={photos / subject}", f"class_word={SUBJECTS[subject]}", *GRID, *MEASURED]
    places = [f"out={out / subject / 'runs'}", f"hydra.sweep.dir={out / subject / 'sweep'}"]
    (out / subject).mkdir(parents=True, exist_ok=True)
    with (out / f"{subject}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "dreamlab.train", "-m", *words, *places], stdout=log, stderr=log)


def main() -> None:
    """Run both sweeps; what is left is their tables, and their pages for the pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("outputs/lr-x-steps"))
    given = parser.parse_args()
    started = {subject: sweep(subject, given.photos.resolve(), given.out) for subject in SUBJECTS}
    for subject, process in started.items():
        code = process.wait()
        print(subject, "is done" if code == 0 else f"failed, see {given.out / subject}.log")
        table = given.out / subject / "sweep" / "results.csv"
        if table.is_file():
            shutil.copy(table, Path(__file__).parent / f"{subject}.csv")


if __name__ == "__main__":
    main()
