"""Objectives against closed forms, torch.distributions and automatic differentiation."""

import math

import pytest
import torch

from promof_hpc.design.learning.objective import (
    at_reference_dof,
    clipped_surrogate,
    masked_mean,
    token_entropy,
    token_kl,
)

ALL = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.0, 2.0, -2.0),  # on policy: the plain policy gradient
        (1.1, 2.0, -2.2),  # inside the clip
        (1.3, 2.0, 0.0),  # already likelier than the clip allows
        (1.3, -2.0, 2.6),  # too likely and bad: pushed back
        (0.7, 2.0, -1.4),  # too unlikely and good: pulled back
        (0.7, -2.0, 0.0),
    ],
)
def test_gradient_of_the_surrogate_in_each_region(ratio, advantage, gradient):
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2, ALL)
    found.loss.backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.item() == pytest.approx(gradient, abs=1e-9)
    assert found.clip_share == float(gradient == 0.0)
    assert found.ratio_deviation == pytest.approx(abs(ratio - 1))


def test_surrogate_on_policy_has_the_gradient_of_the_score_function():
    """d/dtheta of -mean(A log pi) for a Gaussian policy with a learned mean."""
    torch.manual_seed(0)
    mean = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    actions, advantage = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    log_prob = torch.distributions.Normal(mean, 0.7).log_prob(actions)
    found = clipped_surrogate(log_prob - log_prob.detach(), advantage, 0.2, torch.ones(5, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(found.loss, mean)
    torch.testing.assert_close(gradient, -advantage * actions / 0.7**2 / 5)
    assert found.ratio_deviation == 0.0


def test_what_the_mask_leaves_out_has_no_part():
    log_ratio = torch.tensor([0.0, float("inf"), float("nan")], requires_grad=True)
    mask = torch.tensor([True, False, False])
    found = clipped_surrogate(log_ratio, torch.tensor([3.0, 1.0, 1.0]), 0.2, mask)
    found.loss.backward()
    assert found.loss.item() == -3.0
    assert log_ratio.grad is not None
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-3.0, 0.0, 0.0]))
    assert found.ratio_deviation == 0.0
    nothing = clipped_surrogate(log_ratio, torch.tensor(1.0), 0.2, torch.zeros(3, dtype=torch.bool))
    assert nothing.loss.item() == 0.0
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_log_ratios_of_a_larger_modality_are_scaled_down():
    summed = torch.tensor([[0.6, 0.6, 0.6]])
    scaled = at_reference_dof(summed, torch.tensor([[12.0, 36.0, 0.0]]), 12.0)
    torch.testing.assert_close(scaled, torch.tensor([[0.6, 0.2, 0.0]]))


def test_divergence_and_entropy_equal_those_of_torch_distributions():
    torch.manual_seed(1)
    p, q = (torch.randn(4, 3, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    both = [torch.distributions.Categorical(logits=x) for x in (p, q)]
    torch.testing.assert_close(token_kl(p, q), torch.distributions.kl_divergence(*both))
    torch.testing.assert_close(token_entropy(p), both[0].entropy())
    torch.testing.assert_close(token_kl(p, p), torch.zeros(4, 3, dtype=torch.float64))


def test_forbidden_tokens_add_nothing_and_keep_gradients_finite():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    forbidden = torch.tensor([False, True, False, False])
    log_p = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)
    log_q = torch.zeros(1, 4, dtype=torch.float64).masked_fill(forbidden, -torch.inf).log_softmax(-1)
    kl, entropy = token_kl(log_p, log_q), token_entropy(log_p)
    allowed = torch.softmax(logits[0, ~forbidden].detach(), -1)
    assert entropy.item() == pytest.approx(-(allowed * allowed.log()).sum().item())
    assert kl.item() == pytest.approx(math.log(3) - entropy.item())
    (gradient,) = torch.autograd.grad(kl.sum() + entropy.sum(), logits)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)  # they add up to log 3


def test_gradients_pass_a_numerical_check():
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 5, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: token_kl(x.log_softmax(-1), reference), logits)
    assert torch.autograd.gradcheck(lambda x: token_entropy(x.log_softmax(-1)), logits)
