"""bf16_pure: weights in bfloat16, rounded at random without bias, the same way however often a run is stopped."""

from pathlib import Path

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of
from diffusers import StableDiffusionPipeline
from test_update import prepared

from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.randomness import Use, torch_generator
from dreamlab.rounding import round_stochastically, step_rounded

PURE = "precision=bf16_pure"


def chance(update: int = 0, seed: int = 1) -> torch.Generator:
    return torch_generator(seed, Use.ROUNDING, update, torch.device("cpu"))


@pytest.mark.parametrize("value", [1.001, -1.001, 0.02 + 1e-6, 3.14159, 1e-30, -6.5e4 + 7])
def test_the_mean_of_rounded_values_is_the_value(value: float) -> None:
    count = 200_000
    exact = torch.full((count,), value)
    rounded = round_stochastically(exact, chance()).double()
    neighbours = sorted(set(rounded.tolist()))
    assert len(neighbours) == 2 and neighbours[0] < exact[0].item() < neighbours[1]
    gap = neighbours[1] - neighbours[0]
    assert abs(rounded.mean().item() - exact[0].item()) < 5 * 0.5 * gap / count**0.5  # five standard errors at most


def test_what_bfloat16_can_hold_stays_itself() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e38, float("inf"), -float("inf")]).bfloat16()
    assert torch.equal(round_stochastically(exact.float(), chance()), exact)
    # CUDA's own NaN has all bits set: adding to them would give a zero
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert round_stochastically(nans, chance()).isnan().all()


def test_rounding_is_a_function_of_seed_and_update_and_touches_no_global_generator() -> None:
    exact, before = torch.linspace(1, 2, 1000), torch.get_rng_state()
    first = round_stochastically(exact, chance(3))
    assert torch.equal(first, round_stochastically(exact, chance(3)))
    assert not torch.equal(first, round_stochastically(exact, chance(4)))
    assert not torch.equal(first, round_stochastically(exact, chance(3, seed=2)))
    assert torch.equal(before, torch.get_rng_state())


def test_updates_below_half_a_unit_add_up_where_plain_bfloat16_stalls() -> None:
    """100 updates of 2e-4 on weights of 1, whose neighbour below is 4e-3 away."""
    drawn, plain = (torch.nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16)) for _ in range(2))
    ours, theirs = (torch.optim.SGD([weight], lr=2e-4) for weight in (drawn, plain))
    for update in range(100):
        drawn.grad, plain.grad = torch.ones_like(drawn), torch.ones_like(plain)
        step_rounded(ours, chance(update))
        theirs.step()
    assert (plain == 1).all()
    assert drawn.dtype == torch.bfloat16
    assert drawn.double().mean().item() == pytest.approx(1 - 100 * 2e-4, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        "adamw8bit",
        *(pytest.param(o, marks=pytest.mark.thorough) for o in ("adamw", "paged_adamw8bit", "lion", "adafactor")),
    ],
)
def test_going_on_from_a_shorter_run_is_one_long_run(train_run: TrainRun, optimizer: str) -> None:
    words = (PURE, f"optimizer={optimizer}", "prior_weight=0", "lr=1e-4", "prompts=[]")
    short = train_run(*words, "steps=1", "name=short")
    longer = train_run(*words, "steps=3", "name=longer", f"resume={short.path}")
    at_once = train_run(*words, "steps=3", "name=at_once")
    assert are_identical(weights_of(longer), weights_of(at_once))
    state = torch.load(longer.checkpoint, weights_only=True)
    assert {weight.dtype for weight in state["state_dict"].values()} == {torch.bfloat16}
    kept = state["optimizer_states"][0]["state"].values()
    moments = [tensor for entry in kept for key, tensor in entry.items() if torch.is_tensor(tensor) and key != "step"]
    assert {moment.dtype for moment in moments} <= {torch.float32, torch.uint8}


def test_its_losses_are_those_of_masters_within_bfloat16(train_run: TrainRun) -> None:
    words = ("steps=4", "lr=1e-4", "prior_weight=0", "prompts=[]")
    masters, pure = train_run("precision=bf16", "name=masters", *words), train_run(PURE, "name=pure", *words)
    wanted = [row["train/loss"] for row in masters.read_metrics()]
    assert [row["train/loss"] for row in pure.read_metrics()] == pytest.approx(wanted, rel=3e-2)


def test_its_weights_move_are_drawn_with_saved_and_read_by_diffusers(train_run: TrainRun, model: Family) -> None:
    run = train_run(PURE, "sample_every=1", "adapter.train=[unet]")
    assert len(list(Path(run.samples).rglob("*.png"))) == 3
    pipe = StableDiffusionPipeline.from_pretrained(run.model)
    image = pipe("a photo of a dog", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    before, after = weights_in(model), weights_of(run)
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert all(name.startswith("unet") for name in moved) and len(moved) > 300
    assert all(torch.equal(after[name], after[name].bfloat16().float()) for name in moved)


def test_only_what_learns_is_bfloat16(settings: Settings) -> None:
    _, _, module, _ = prepared(settings(PURE, "adapter.train=[unet.cross_attention]", "prior_weight=0"))
    kinds = {weight.dtype: weight.requires_grad for weight in module.trained.parameters()}
    assert kinds == {torch.bfloat16: True, torch.float32: False}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("optimizer=prodigy",), "looks at all weights at once"),
        (("optimizer._target_=torch.optim.LBFGS", "~optimizer.betas", "~optimizer.weight_decay", "~optimizer.eps"),
         "looks at all weights at once"),
        (("ema=0.99",), "too coarse for ema=0.99"),
    ],
    ids=["prodigy", "lbfgs", "ema"],
)  # fmt: skip
def test_what_it_cannot_work_with_is_refused(settings: Settings, words: tuple[str, ...], part: str) -> None:
    with pytest.raises(UserError, match=part):
        check(settings(PURE, *words))


def test_training_and_its_probes_share_one_set_of_class_images(
    train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMLAB_CACHE", str(tmp_path / "cache"))
    train_run(PURE, "steps=1", "eval.probes=1", "num_prior_images=2")  # the weights are bfloat16 once they are probed
    (folder,) = (tmp_path / "cache" / "prior").iterdir()
    assert len(list(folder.glob("*.png"))) == 4
