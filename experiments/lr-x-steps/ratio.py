"""How much sooner a sweep is over than its runs one by one, and that their weights are the same bit for bit.

    python experiments/lr-x-steps/ratio.py --out outputs/ratio

The sweep runs first on an empty cache, then each of its 18 runs alone, by its own command, with the cache that the
sweep has filled: that favours the lone runs.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

GRID = {"lr": ("1e-5", "5e-5", "2e-4"), "steps": ("50", "100", "200"), "prior_weight": ("0", "1")}


def timed(words: list[str], log: Path) -> float:
    """Seconds that `python -m dreamlab.train <words>` takes."""
    began = time.perf_counter()
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-m", "dreamlab.train", *words], check=True, stdout=file, stderr=file)
    return time.perf_counter() - began


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs saved the same model, bit for bit."""
    files = sorted(path.relative_to(one / "model") for path in (one / "model").rglob("*.safetensors"))
    for file in files:
        ours, theirs = load_file(one / "model" / file), load_file(other / "model" / file)
        if ours.keys() != theirs.keys() or any(not ours[name].equal(theirs[name]) for name in ours):
            return False
    return bool(files)


def main() -> None:
    """Time both ways and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("outputs/ratio"))
    given, common = parser.parse_known_args()
    out: Path = given.out
    out.mkdir(parents=True)
    os.environ["DREAMLAB_CACHE"] = str(out.resolve() / "cache")
    words = [f"{key}={','.join(values)}" for key, values in GRID.items()]
    places = [f"out={out / 'sweep'}", f"hydra.sweep.dir={out / 'page'}"]
    together = timed(["-m", *common, *words, *places], out / "sweep.log")
    alone = 0.0
    for values in itertools.product(*GRID.values()):
        one = [f"{key}={value}" for key, value in zip(GRID, values, strict=True)]
        alone += timed([*common, *one, f"out={out / 'alone'}"], out / "alone.log")
    names = sorted(path.name for path in (out / "alone").iterdir())
    identical = sum(same_weights(out / "alone" / name, out / "sweep" / name) for name in names)
    told = {
        "sweep_s": round(together, 1), "alone_s": round(alone, 1), "ratio": round(alone / together, 2),
        "runs": len(names), "identical": identical,
    }  # fmt: skip
    (out / "ratio.json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
