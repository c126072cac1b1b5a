"""Metrics against closed forms, and intervals that cover what they promise."""

import math

import pytest
import torch
from torch import Tensor

from dreamlab import estimates, metrics
from dreamlab.estimates import Estimate, bootstrap, estimate_mean, estimate_mean_pair


def features(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def subject(photos: int, seed: int, d: int = 64) -> Tensor:
    """Photos of one subject: a shared direction and an equal share of each photo's own."""
    return features(1, d, seed=1000 + seed) + features(photos, d, seed=seed)


def test_identical_images_have_fidelity_1_and_diversity_0() -> None:
    same = features(1, 16).expand(4, 16)
    torch.testing.assert_close(metrics.fidelity(same, same), torch.ones(4))
    assert metrics.diversity(metrics.distances(same), torch.zeros(4).long()).abs() < 1e-6
    assert metrics.drift(same, same).abs().max() < 1e-6


def test_fidelity_is_the_mean_cosine_over_all_pairs() -> None:
    angles = torch.tensor([0.0, 60.0, 90.0]).deg2rad()
    photos = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [0.1]])
    score = metrics.fidelity(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), photos)
    torch.testing.assert_close(score, torch.tensor([1.5 / 3, -(math.sqrt(3) / 2 + 1) / 3]))


def test_prompt_fidelity_compares_each_image_with_its_own_prompt() -> None:
    axes = torch.eye(3)
    torch.testing.assert_close(metrics.prompt_fidelity(axes, axes * 2), torch.ones(3))
    torch.testing.assert_close(metrics.prompt_fidelity(axes, axes.roll(1, 0)), torch.zeros(3))


def test_order_of_images_and_photos_does_not_matter() -> None:
    generated, photos, order = features(9, 8), features(5, 8, seed=1), torch.randperm(9)
    prompts = torch.arange(9) // 3
    torch.testing.assert_close(metrics.fidelity(generated, photos)[order], metrics.fidelity(generated[order], photos))
    torch.testing.assert_close(metrics.fidelity(generated, photos), metrics.fidelity(generated, photos.flip(0)))
    apart = metrics.distances(generated)
    shuffled = metrics.distances(generated[order])
    torch.testing.assert_close(metrics.diversity(apart, prompts), metrics.diversity(shuffled, prompts[order]))
    assert metrics.memorisation(generated[order], photos).copies == metrics.memorisation(generated, photos).copies


def test_half_precision_features_are_scored_in_float32() -> None:
    scores = metrics.fidelity(features(3, 8).half(), features(2, 8).half())
    assert scores.dtype == torch.float32


def test_diversity_is_per_prompt_and_skips_a_prompt_of_one_image() -> None:
    apart = torch.tensor([[0.0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0]])
    assert metrics.diversity(apart, torch.tensor([4, 4, 7, 8])).tolist() == [1.0]
    assert metrics.diversity(apart, torch.tensor([4, 4, 7, 7])).tolist() == [1.0, 9.0]
    assert metrics.diversity(apart, torch.arange(4)).shape == (0,)


def test_preservation_change_is_0_for_the_base_model_and_positive_when_the_class_became_the_subject() -> None:
    photos, base = subject(5, seed=1), features(40, 64, seed=2)
    assert metrics.preservation_change(base, base, photos).abs().max() == 0
    drifted = base + 2 * photos.mean(0)
    assert metrics.preservation_change(drifted, base, photos).min() > 0
    assert metrics.drift(drifted, base).min() > 0 and metrics.drift(-base, base).max() <= 2 + 1e-6


def test_collapse_is_1_unharmed_and_0_when_the_class_is_one_picture() -> None:
    base = features(12, 16)
    unharmed = metrics.collapse(metrics.distances(base), metrics.distances(base))
    assert unharmed == Estimate(1.0, 1.0, 1.0, 12)
    assert metrics.collapse(metrics.distances(base[:1].expand(12, 16)), metrics.distances(base)).value < 1e-6
    half = metrics.collapse(metrics.distances(base) / 2, metrics.distances(base))
    assert half.value == pytest.approx(0.5) and half.low == pytest.approx(0.5)


@pytest.mark.parametrize("photos", [2, 3, 5, 10])
def test_a_planted_copy_is_found_and_nothing_else(photos: int) -> None:
    train = subject(photos, seed=photos)
    samples = features(1, 64, seed=1000 + photos) + features(40, 64, seed=99)
    assert metrics.memorisation(samples, train).copies == 0
    samples[7] = 3 * train[1]
    samples[8] = train[0] + features(64, seed=5, scale=0.1)  # a copy with a little noise
    found = metrics.memorisation(samples, train)
    assert found.is_copy.nonzero()[:, 0].tolist() == [7, 8]
    assert found.nearest[[7, 8]].tolist() == [1, 0]
    assert found.similarity[7] == pytest.approx(1)
    assert found.reference.shape == (photos,)


def test_held_out_photos_say_what_is_usual() -> None:
    train, held_out = subject(4, seed=3), features(1, 64, seed=1003) + features(20, 64, seed=4)
    likeness = features(1, 64, seed=1003) + features(30, 64, seed=6)
    found = metrics.memorisation(likeness, train, held_out)
    assert found.copies == 0 and found.reference.shape == (20,)
    assert found.excess and found.excess.low is not None and found.excess.high is not None
    assert found.excess.low < 0 < found.excess.high  # samples like unseen photos: no nearer than those
    copies = metrics.memorisation(train.repeat(3, 1), train, held_out)
    assert copies.copies == 12 and copies.excess and copies.excess.low and copies.excess.low > 0.2


def test_false_alarms_of_memorisation_stay_below_their_rate() -> None:
    alarms = 0
    for seed in range(200):
        together = features(1, 32, seed=seed + 500) + features(45, 32, seed=seed)
        alarms += metrics.memorisation(together[5:], together[:5]).copies > 0
    assert alarms / 200 <= 0.05


def test_one_photo_flags_nothing_and_still_tells_the_similarity() -> None:
    photo = features(1, 8)
    found = metrics.memorisation(photo, photo)
    assert found.similarity.item() == pytest.approx(1) and not found.is_copy.any() and found.excess is None


def test_an_interval_is_a_function_of_its_seed_and_holds_its_value() -> None:
    scores = features(20)
    one = estimate_mean(scores, seed=3)
    assert one == estimate_mean(scores, seed=3) != estimate_mean(scores, seed=4)
    assert one.low is not None and one.high is not None and one.low < one.value < one.high
    assert one.value == pytest.approx(float(scores.mean())) and one.units == 20
    assert estimate_mean(scores[:1]) == Estimate(float(scores[0]), None, None, 1)


def test_a_group_of_images_is_one_unit() -> None:
    scores, prompts = torch.tensor([0.0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 5, 5, 5, 5])
    estimate = estimate_mean(scores, prompts)
    assert estimate.units == 2 and estimate.value == pytest.approx(4 / 7)  # of all images, not of the two means
    assert (estimate.low, estimate.high) == (0, 1)


def test_pairs_of_one_unit_drawn_twice_do_not_count() -> None:
    apart = torch.full((6, 6), 2.0).fill_diagonal_(0)
    assert estimate_mean_pair(apart) == Estimate(2.0, 2.0, 2.0, 6)
    counts = torch.tensor([[2.0, 1, 0, 0, 0, 0]])
    assert estimates.mean_pair(apart, counts).item() == 2.0


@pytest.mark.parametrize(("units", "images"), [(8, 1), (25, 1), (25, 4)])
def test_intervals_cover_at_their_nominal_rate(units: int, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that differ as much as the images within them; 95% plus or minus three binomial deviations."""
    monkeypatch.setattr(estimates, "DRAWS", 600)
    trials, hits = 400, 0
    prompts = torch.arange(units).repeat_interleave(images)
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(units, 1, generator=generator) + torch.randn(units, images, generator=generator)
        estimate = estimate_mean(scores.flatten(), prompts, seed)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0 <= estimate.high
    assert 0.95 - 3.3 * math.sqrt(0.95 * 0.05 / trials) < hits / trials < 0.985


def test_a_ratio_is_resampled_in_pairs() -> None:
    """Numerator and denominator share their units: a constant ratio has an interval of width 0."""
    base = features(30).abs() + 0.1
    ratio = bootstrap(lambda counts: (counts @ (3 * base)) / (counts @ base), 30)
    assert ratio.low == pytest.approx(3) and ratio.high == pytest.approx(3)
