"""Two processes that share every update learn what one process learns from the same global batch."""

from pathlib import Path

import pytest
import torch
from conftest import Settings, start_command, weights_of

from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.runs import RunDirectory

SGD = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.weight_decay", "~optimizer.eps")


def trained(tiny: tuple[str, ...], out: Path, name: str, *words: str) -> RunDirectory:
    """A run of the command in processes of its own, with a cache of its own."""
    given = (
        *tiny,
        *SGD,
        "lr=0.01",
        "steps=3",
        "accumulate=2",
        f"out={out}",
        f"name={name}",
        f"cache_dir={out}/{name}-c",
    )
    process = start_command("dreamlab.train", *given, *words, log=out / f"{name}.txt")
    code = process.wait(300)
    assert code == 0, (out / f"{name}.txt").read_text(encoding="utf-8")
    return RunDirectory(out / name)


@pytest.mark.slow
def test_two_processes_are_one_of_the_same_global_batch(tiny: tuple[str, ...], tmp_path: Path) -> None:
    one = trained(tiny, tmp_path, "one", "batch_size=2", "data.flip=true")
    two = trained(tiny, tmp_path, "two", "trainer.devices=2", "batch_size=1", "data.flip=true")
    expected, found = weights_of(one), weights_of(two)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)
    for key in ("train/loss", "train/loss_instance", "train/loss_prior", "train/grad_norm"):
        losses = [[row[key] for row in run.read_metrics()] for run in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), key
    assert len(two.read_metrics()) == 3 and two.status()["state"] == "finished"

    def class_images(name: str) -> dict[str, bytes]:
        folder = tmp_path / f"{name}-c" / "prior"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}

    assert class_images("one") == class_images("two") and len(class_images("two")) == 2


def test_what_several_devices_cannot_do_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="needs GPUs"):
        check(settings("trainer.devices=2", "trainer.strategy=fsdp"))
    with pytest.raises(UserError, match="sample, measure or average"):
        check(settings("trainer.devices=2", "trainer.strategy=fsdp", "ema=0.9"))
