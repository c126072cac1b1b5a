"""A loop that lasts a given time: training on a rented machine is planned in seconds, not in updates."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

LOG_EVERY = 100  # updates; reading the loss waits for the machine, so not at every update


class Clock:
    """Iterating yields the share of the plan that has passed, in [0, 1], until `run_s` seconds are over.

    `before_s` is what earlier pieces already ran and `plan_s` the time of all pieces together (this one's alone when
    left out). At most `most_steps` steps, when given.
    """

    def __init__(
        self,
        name: str,
        run_s: float,
        log: Path | None = None,
        *,
        before_s: float = 0.0,
        plan_s: float | None = None,
        most_steps: int | None = None,
    ) -> None:
        self.name, self.run_s, self.log, self.before_s = name, run_s, log, before_s
        self.plan_s = plan_s or before_s + run_s
        self.most_steps = most_steps
        self.steps = 0
        self.start = time.monotonic()

    def total_s(self) -> float:
        """Seconds of this and of the earlier pieces."""
        return self.before_s + time.monotonic() - self.start

    def __iter__(self) -> Iterator[float]:
        self.start = time.monotonic()
        with tqdm(desc=self.name, unit=" updates", mininterval=5) as self.bar:
            while time.monotonic() - self.start < self.run_s and self.steps != self.most_steps:
                yield min(1.0, self.total_s() / self.plan_s)
                self.steps += 1
                self.bar.update()

    def note(self, loss: Tensor) -> None:
        """Shows and logs every hundredth loss."""
        if self.steps % LOG_EVERY:
            return
        value = loss.item()
        self.bar.set_postfix(loss=f"{value:.4f}")
        if self.log:
            row = {
                "stage": self.name,
                "step": self.steps,
                "elapsed_s": round(self.total_s(), 2),
                "loss": round(value, 5),
            }
            with self.log.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
