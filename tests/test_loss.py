"""loss = mean over instance samples + prior_weight x mean over prior samples, whatever the batch looks like."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from dreamlab.loss import dreambooth_loss, masked_mean, per_sample_error


def pair(size: int) -> tuple[Tensor, Tensor]:
    """A prediction that asks for gradients, and a target."""
    pred, wanted = torch.randn(2, size, 4, 8, 8, generator=torch.Generator().manual_seed(size)).unbind(0)
    return pred.requires_grad_(), wanted


def mask(*flags: int) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool)


@pytest.mark.parametrize("flags", [(0, 1), (0, 0, 1), (1, 0, 1, 1, 0), (0, 0, 0, 1, 1, 1, 1)])
@pytest.mark.parametrize("prior_weight", [0.0, 0.5, 1.0, 3.0])
def test_each_half_is_its_own_mean_in_even_and_odd_batches(flags: tuple[int, ...], prior_weight: float) -> None:
    pred, wanted = pair(len(flags))
    losses = dreambooth_loss(pred, wanted, mask(*flags), prior_weight)
    instance = mse_loss(pred[~mask(*flags)], wanted[~mask(*flags)])
    prior = mse_loss(pred[mask(*flags)], wanted[mask(*flags)])
    torch.testing.assert_close(losses.instance, instance)
    torch.testing.assert_close(losses.prior, prior)
    torch.testing.assert_close(losses.total, instance + prior_weight * prior)


def test_the_order_of_the_samples_does_not_matter() -> None:
    pred, wanted = pair(5)
    is_prior, order = mask(0, 1, 1, 0, 1), torch.tensor([3, 1, 4, 0, 2])
    before = dreambooth_loss(pred, wanted, is_prior, 0.7)
    after = dreambooth_loss(pred[order], wanted[order], is_prior[order], 0.7)
    torch.testing.assert_close(torch.stack(after[:3]), torch.stack(before[:3]))
    assert torch.equal(after.errors, before.errors[order])


def test_a_large_half_does_not_outweigh_a_small_one() -> None:
    pred = torch.cat([torch.full((1, 1, 2, 2), 2.0), torch.full((7, 1, 2, 2), 1.0)])
    losses = dreambooth_loss(pred, torch.zeros_like(pred), mask(0, 1, 1, 1, 1, 1, 1, 1), 1.0)
    assert (losses.total.item(), losses.instance.item(), losses.prior.item()) == (5.0, 4.0, 1.0)


def test_without_weight_the_prior_samples_give_no_gradient() -> None:
    pred, wanted = pair(4)
    losses = dreambooth_loss(pred, wanted, mask(0, 1, 0, 1), prior_weight=0)
    losses.total.backward()
    assert pred.grad is not None
    assert torch.equal(losses.total, losses.instance) and losses.prior > 0
    assert pred.grad[[1, 3]].abs().max() == 0 and pred.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize(("flags", "missing"), [((0, 0, 0), "prior"), ((1, 1), "instance")])
def test_a_missing_half_is_zero_and_its_gradient_no_nan(flags: tuple[int, ...], missing: str) -> None:
    pred, wanted = pair(len(flags))
    losses = dreambooth_loss(pred, wanted, mask(*flags), 1.0)
    losses.total.backward()
    assert getattr(losses, missing) == 0
    torch.testing.assert_close(losses.total, mse_loss(pred, wanted))
    assert pred.grad is not None and pred.grad.isfinite().all()


def test_an_infinite_error_in_one_half_leaves_the_other_alone() -> None:
    values = torch.tensor([1.0, float("inf"), 3.0])
    assert masked_mean(values, mask(1, 0, 1)) == 2.0


def test_weights_multiply_each_sample() -> None:
    pred, wanted = pair(4)
    weights, is_prior = torch.tensor([1.0, 2.0, 3.0, 4.0]), mask(0, 0, 1, 1)
    errors = per_sample_error(pred, wanted)
    losses = dreambooth_loss(pred, wanted, is_prior, 0.5, weights)
    torch.testing.assert_close(losses.instance, (errors[0] + 2 * errors[1]) / 2)
    torch.testing.assert_close(losses.prior, (3 * errors[2] + 4 * errors[3]) / 2)
    torch.testing.assert_close(losses.total, losses.instance + 0.5 * losses.prior)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    pred, wanted = torch.full((1, 1, 64, 64), 300.0, dtype=torch.float16), torch.zeros(1, 1, 64, 64)
    losses = dreambooth_loss(pred, wanted, mask(0), 1.0)  # 300² is beyond float16
    assert losses.total.dtype == torch.float32 and losses.total == 90000.0
