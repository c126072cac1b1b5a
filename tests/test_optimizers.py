"""Every optimizer that has a file trains the miniature model; Prodigy finds its own learning rate."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of

from dreamlab.checks import check
from dreamlab.config import build, conf_dir
from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.optim import fuse_on_cpu

NAMES = sorted(path.stem for path in (Path(conf_dir()) / "optimizer").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_it_lowers_a_loss(settings: Settings, name: str) -> None:
    """A parabola in 100 dimensions, which no argument of the files stands in the way of."""
    config, _ = check(settings(f"optimizer={name}"))
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 100).repeat(50))
    optimizer = build(config.optimizer)([weight], lr=1 if name == "prodigy" else 1e-2)
    losses = []
    for _ in range(200):
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_prodigy_trains_pocket_without_a_learning_rate(train_run: TrainRun, model: Family) -> None:
    words = ("optimizer=prodigy", "prior_weight=0", "prompts=[]")
    run = train_run(*words, "steps=20", "name=once")
    rates = [row["train/lr_unet"] for row in run.read_metrics()]
    assert rates[0] == pytest.approx(1e-6) and rates[-1] > 2e-6, "the rate is its own estimate, and grows"
    after, before = weights_of(run), weights_in(model)
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"unet", "text_encoder"}
    short = train_run(*words, "steps=15", "name=short")
    longer = train_run(*words, "steps=20", "name=longer", f"resume={short.path}")
    assert are_identical(weights_of(longer), after)


def test_an_optimizers_own_rate_gives_way_to_the_command_line(settings: Settings) -> None:
    assert settings("optimizer=prodigy").lr == 1
    assert settings("optimizer=prodigy", "lr=0.5").lr == 0.5
    assert settings("optimizer=adamw").lr == settings().lr == 5e-5


def test_prodigy_takes_one_rate(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"one learning rate.*leave out text_encoder_lr=0\.1"):
        check(settings("optimizer=prodigy", "text_encoder_lr=0.1"))


def test_without_the_package_its_extra_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # as Python itself marks a package that can't be imported
    with pytest.raises(UserError, match=r"prodigyopt.*pip install 'dreamlab\[prodigy\]'"):
        check(settings("optimizer=prodigy"))


def test_one_pass_over_each_weight_steps_as_several_do() -> None:
    ends = []
    for kind in (torch.optim.AdamW, torch.optim.Adam):
        for is_fused in (False, True):
            weight = torch.nn.Parameter(torch.linspace(-1, 1, 1001))
            optimizer = kind([{"params": [weight], "name": "unet"}], lr=1e-2, weight_decay=0.1)
            if is_fused:
                fuse_on_cpu(optimizer)
            assert bool(optimizer.param_groups[0]["fused"]) is is_fused
            for _ in range(20):
                optimizer.zero_grad()
                (weight**3).sum().backward()
                optimizer.step()
            ends.append(weight.detach())
        torch.testing.assert_close(ends[-1], ends[-2], atol=1e-6, rtol=1e-5)
        assert (ends[-1] - torch.linspace(-1, 1, 1001)).abs().mean() > 0.05
    others = (torch.optim.SGD([weight], lr=1e-2), torch.optim.AdamW([weight], lr=1e-2, foreach=True))
    for optimizer in others:
        fuse_on_cpu(optimizer)
        assert not optimizer.param_groups[0]["fused"]
