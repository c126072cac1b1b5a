"""Where the numbers and pictures of one run go while it is trained; a training may keep several runs at once."""

from dataclasses import dataclass

from pytorch_lightning.loggers import Logger

from dreamlab.runs import RunDirectory


@dataclass
class RunLog:
    """A run's directory and logger, up to its own last update `steps`: the training may go on after it."""

    run: RunDirectory
    steps: int
    signature: str = ""
    logger: Logger | None = None
