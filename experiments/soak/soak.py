"""Whether a long sweep stays small: memory and open files after each of many short runs of one process.

    python experiments/soak/soak.py --runs 200 --out outputs/soak

The sweep is the real command; after each of its trainings a row is written. Further words go to it.
"""

import argparse
import csv
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamlab import train as command

SHORT = (
    "steps=2", "num_prior_images=2", "prior.steps=2", "prompts=[]", "logger=none", "device=cpu", "batch_size=1",
    "eval.near=1", "eval.far=1", "eval.unrelated=1", "eval.class_images=2", "eval.images_per_prompt=1", "eval.steps=2",
    "eval.moments=0", "eval.probes=1", "adapter=lora",
)  # fmt: skip
COLUMNS = ("run", "seconds", "rss_mib", "open_files", "threads", "objects")


def rss_mib() -> float:
    """What this process holds of the memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watched(train_together: Callable[..., Any], file: Path) -> Callable[..., Any]:
    """The same training, and a row in `file` after it."""
    began, number = time.perf_counter(), 0

    def train_and_look(*given: Any, **more: Any) -> Any:
        nonlocal number
        made = train_together(*given, **more)
        number += 1
        row = (
            number, round(time.perf_counter() - began, 1), round(rss_mib(), 1), len(os.listdir("/proc/self/fd")),
            threading.active_count(), len(gc.get_objects()),
        )  # fmt: skip
        with file.open("a", encoding="utf-8", newline="") as table:
            csv.writer(table).writerow(row)
        return made

    return train_and_look


def draw(file: Path, picture: Path) -> None:
    """Both curves over the runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with file.open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    for panel, column, label in zip(panels, ("rss_mib", "open_files"), ("resident, MiB", "open files"), strict=True):
        values = [float(row[column]) for row in rows]
        panel.plot([int(row["run"]) for row in rows], values)
        panel.set(xlabel="runs in one process", ylabel=label, ylim=(0, 1.2 * max(values)))
    figure.savefig(picture, dpi=90)


def main() -> None:
    """Run the sweep, then draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("outputs/soak"))
    given, words = parser.parse_known_args()
    out: Path = given.out
    out.mkdir(parents=True)
    file = out / "soak.csv"
    file.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    command.train_together = watched(command.train_together, file)
    places = (f"out={out / 'runs'}", f"hydra.sweep.dir={out / 'sweep'}", f"cache_dir={out / 'cache'}")
    sys.argv = ["dreamlab.train", "-m", *SHORT, *places, f"seed=range(1,{given.runs + 1})", *words]
    try:
        command.main()
    finally:
        draw(file, out / "soak.png")


if __name__ == "__main__":
    main()
