"""Two processes that share every update learn what one process learns from the same global batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings, TrainRun, start_command, weights_of

from dreamlab import shares
from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.runs import RunDirectory
from dreamlab.shares import total_norm

SGD = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.weight_decay", "~optimizer.eps")


SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "sweep"}


def trained(tiny: tuple[str, ...], out: Path, name: str, *words: str, **environment: str) -> RunDirectory:
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
    process = start_command("dreamlab.train", *given, *words, log=out / f"{name}.txt", **environment)
    code = process.wait(300)
    assert code == 0, (out / f"{name}.txt").read_text(encoding="utf-8")
    return RunDirectory(out / name)


@pytest.mark.slow
def test_two_processes_are_one_of_the_same_global_batch(tiny: tuple[str, ...], tmp_path: Path) -> None:
    one = trained(tiny, tmp_path, "one", "batch_size=2", "data.flip=true")
    # A Slurm job's one task starts both, of which Lightning would expect the cluster to start the second
    two = trained(tiny, tmp_path, "two", "trainer.devices=2", "batch_size=1", "data.flip=true", **SLURM)
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


def test_one_process_is_alone_whatever_a_cluster_says_of_its_job(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth task of a Slurm job whose `--ntasks=4` Lightning would refuse."""
    for name, value in {**SLURM, "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}.items():
        monkeypatch.setenv(name, value)
    run = train_run("steps=1")
    assert run.status()["state"] == "finished" and len(run.read_metrics()) == 1


def test_what_several_devices_cannot_do_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="needs GPUs"):
        check(settings("trainer.devices=2", "trainer.strategy=fsdp"))
    with pytest.raises(UserError, match="sample, measure or average"):
        check(settings("trainer.devices=2", "trainer.strategy=fsdp", "ema=0.9"))


def clip(rank: int, meeting_point: str, results: Any) -> None:
    """What one of two processes does, which holds 3 or 4 of a gradient (3, 4)."""
    torch.distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=2)
    weight, empty = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(0))
    weight.grad = torch.tensor([3.0 + rank])
    norm = total_norm([weight, empty], are_shares=True)
    shares.clip([weight, empty], norm, 1.0)
    results[rank] = (norm.item(), weight.grad.item())
    torch.distributed.destroy_process_group()


def test_gradients_in_shares_are_clipped_by_the_norm_of_the_whole(tmp_path: Path) -> None:
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(clip, (str(tmp_path / "meet"), results), nprocs=2)
        assert results[0] == pytest.approx((5, 3 / 5)) and results[1] == pytest.approx((5, 4 / 5))
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert total_norm([weight], are_shares=False).item() == 5


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_weights_in_shares_learn_what_one_process_learns(tiny: tuple[str, ...], tmp_path: Path) -> None:
    one = trained(tiny, tmp_path, "one", "batch_size=2", "prompts=[]")
    two = trained(tiny, tmp_path, "two", "trainer.devices=2", "trainer.strategy=fsdp", "batch_size=1", "prompts=[]")
    expected, found = weights_of(one), weights_of(two)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=0)
    norms = [[row["train/grad_norm"] for row in run.read_metrics()] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
