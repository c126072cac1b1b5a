"""What the probes of a run cost, as a share of the seconds that its training updates take.

    python experiments/probe-overhead/measure.py
    python experiments/probe-overhead/measure.py --kinds quick --settings eval.moments=0 data.holdout=1

Each row is the demo on the CPU, trained in this process by the function that the command calls; a clock is put around
the updates and around all that the probes do. Sampling and evaluation are in neither. Writes results.json.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dreamlab import measuring
from dreamlab.config import conf_dir, register_schemas
from dreamlab.module import DreamBooth
from dreamlab.probes import Grid, Probes
from dreamlab.quiet import quiet_libraries
from dreamlab.train import train

RESULTS = Path(__file__).parent / "results.json"
CLOCKED: list[tuple[Any, str]] = [
    (DreamBooth, "optimizer_step"),  # forward, backward, clipping, the optimizer: without loading and logging
    (measuring, "probes"), (measuring, "class_images"), (measuring, "reference_images"),
    (Grid, "remember"), (Probes, "take"),
]  # fmt: skip


def clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same function, which notes how long each call took."""

    def call(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


def measure(settings: list[str], seconds: dict[str, list[float]]) -> dict[str, float]:
    """Seconds and shares of one run, which is deleted afterwards."""
    for calls in seconds.values():
        calls.clear()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(conf_dir(), version_base="1.3"):
        words = ["experiment=demo", "device=cpu", "logger=none", f"out={folder}", *settings]
        config: Any = OmegaConf.to_object(compose("train", words))
        train(config)
    spent = {name: sum(calls) for name, calls in seconds.items()}
    drawing = sum(calls[0] for calls in (seconds["class_images"], seconds["reference_images"]) if calls)
    # `probes` remembers too, and has the pictures it asks about drawn: that is sampling, and cached for later runs
    preparing = spent["probes"] - spent["remember"] - drawing
    updates, asking = spent["optimizer_step"], spent["take"]
    return {
        "updates": len(seconds["optimizer_step"]), "probed": len(seconds["take"]), "updates_s": round(updates, 2),
        "preparing_s": round(preparing, 3), "remember_s": round(spent["remember"], 3), "take_s": round(asking, 3),
        "share": round((preparing + spent["remember"] + asking) / updates, 4),
    }  # fmt: skip


def main() -> None:
    """Measure each kind of evaluation and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["quick", "standard"])
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of every run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    register_schemas()
    quiet_libraries()
    seconds: dict[str, list[float]] = defaultdict(list)
    for owner, name in CLOCKED:
        setattr(owner, name, clocked(getattr(owner, name), seconds[name]))
    results: dict[str, Any] = {
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "settings": args.settings,
    }
    print("| eval | probed | updates s | preparing s | remember s | take s | share |\n|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        row = results[kind] = measure([f"eval={kind}", *args.settings], seconds)
        told = [kind, *(str(value) for key, value in row.items() if key not in ("updates", "share"))]
        print(f"| {' | '.join(told)} | {row['share']:.1%} |", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
