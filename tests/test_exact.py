"""Two updates and two more are four: every number a state holds, bit for bit, however the training is done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrainRun, are_identical, weights_of
from tiny_models import save_tiny

from dreamlab.config import conf_dir
from dreamlab.runs import RunDirectory

OPTIMIZERS = sorted(path.stem for path in (Path(conf_dir()) / "optimizer").glob("*.yaml"))
WAYS = {
    **{optimizer: (f"optimizer={optimizer}",) for optimizer in OPTIMIZERS},
    "fp16": ("precision=fp16", "optimizer=adamw8bit", "prior_weight=0"),  # slow on a CPU: half as many samples
    "accumulate": ("accumulate=2", "batch_size=2"),
    "bf16 weights": ("precision=bf16_pure",),
    "average": ("ema=0.9",),
    "warmup": ("schedule=constant_with_warmup", "schedule.warmup=3"),
    "random crops": ("data.crop=random", "data.flip=true"),
    "one part": ("adapter.train=[text_encoder]", "text_encoder_lr=1e-3"),
    "no prior": ("prior_weight=0", "objective.min_snr_gamma=5"),
}
OFTEN = ("adamw8bit", "fp16", "average", "random crops", "one part")  # the others are left to `make test-thorough`


def differences(one: Any, other: Any, where: str = "state") -> list[str]:
    """Where two states differ: tensors bit for bit, containers by their content."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: {one.keys() ^ other.keys()}"]
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [found for k in range(len(one)) for found in differences(one[k], other[k], f"{where}[{k}]")]
    return [] if one == other else [f"{where}: {one} | {other}"]


def state_of(run: RunDirectory) -> dict[str, Any]:
    """What the last state holds of the training; Lightning's own counts of epochs decide nothing."""
    state = torch.load(run.checkpoint, weights_only=True)
    return {key: value for key, value in state.items() if key not in ("dreamlab", "epoch", "loops")}


def numbers_of(run: RunDirectory) -> list[dict[str, float]]:
    """The metrics of updates 3 and 4 that don't depend on the clock."""
    rows = [row for row in run.read_metrics() if row["update"] > 2]
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"pocket": "pocket", **{f"sd{k}": str(save_tiny(k, folder / f"sd{k}")) for k in (1, 2)}}


@pytest.mark.parametrize(
    ("source", "way"),
    [
        *(pytest.param("sd1", way, marks=() if way in OFTEN else pytest.mark.thorough) for way in WAYS),
        ("sd2", "accumulate"),
        ("pocket", "adamw"),
    ],
)
def test_going_on_after_two_updates_of_four_changes_nothing(
    source: str, way: str, sources: dict[str, str], train_run: TrainRun
) -> None:
    """Three photos and two class images, so that update two ends in the middle of a pass over the photos."""
    words = (*WAYS[way], f"model.source={sources[source]}", "prompts=[]", "max_grad_norm=0.1", "steps=4")
    # At 32 px PyTorch's CPU kernel leaves a bfloat16 weight gradient of one convolution partly unwritten
    words += () if source == "pocket" or way == "bf16 weights" else ("resolution=32",)
    at_once = train_run(*words, "name=at_once", "save_every=2", "keep_states=2")
    resumed = train_run(*words, "name=resumed", f"resume={at_once.state(2)}")
    assert numbers_of(resumed) == numbers_of(at_once) and len(numbers_of(resumed)) == 2
    assert differences(state_of(resumed), state_of(at_once)) == []
    assert are_identical(weights_of(resumed), weights_of(at_once))
    assert ("Scaled" in state_of(resumed)) == ("precision=fp16" in words)


def test_a_state_kept_at_the_end_of_fewer_steps_is_one_kept_on_the_way(
    sources: dict[str, str], train_run: TrainRun
) -> None:
    words = ("prompts=[]", "accumulate=2", "optimizer=adamw8bit", f"model.source={sources['sd1']}", "resolution=32")
    short = train_run(*words, "steps=2", "name=short")
    long = train_run(*words, "steps=4", "name=long", "save_every=2", "keep_states=2")
    on_the_way = torch.load(long.state(2), weights_only=True)
    assert differences(state_of(short), {key: on_the_way[key] for key in state_of(short)}) == []
