"""Advantages, losses, and what changes in the course of a training, against pencil numbers and naive loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.learning.losses import Weights, actor_critic_loss, explained_variance, gae, vtrace
from rl.learning.progress import Discounted, Moments, falling, moments_of, rising
from stepwise import assert_near

PLAIN = Weights(entropy=0.01, value=0.5, clip=0.2, normalise=False)


def _column(*numbers):
    return np.array(numbers, np.float32)[:, None]


def _ends(*steps, length):
    ended = np.zeros((length, 1), bool)
    ended[list(steps)] = True
    return ended


# Six steps, discount 1/2. Step 1 terminates: nothing follows. Step 3 truncates: its final observation is worth 6,
# while the first of the next episode is worth 2 (values[4]). The fragment ends inside an episode, before a value of 8.
REWARDS = _column(1, 2, 0, 1, 3, -1)
VALUES = _column(4, 2, 2, 4, 2, 6)
NEXT = _column(2, 0, 4, 6, 6, 8)
ENDED = _ends(1, 3, length=6)
# r + V'/2 - V:   1+1-4, 2+0-2, 0+2-2, 1+3-4, 3+3-2, -1+4-6
ERRORS = _column(-2, 0, 0, 0, 4, -3)


def test_gae_with_both_kinds_of_end_equals_pencil():
    rewards = REWARDS + _column(0, 1, 0, 2, 0, 0)  # errors: -2, 1, 0, 2, 4, -3
    # λ = 1/2, so 1/4 of the next advantage is carried, but not over an end:
    # A5 = -3; A4 = 4 - 3/4 = 3.25; A3 = 2 (end); A2 = 0 + 2/4 = 0.5; A1 = 1 (end); A0 = -2 + 1/4 = -1.75
    wanted = _column(-1.75, 1, 0.5, 2, 3.25, -3)
    np.testing.assert_array_equal(gae(rewards, VALUES, NEXT, ENDED, 0.5, 0.5), wanted)


def test_gae_with_lambda_zero_is_the_error_of_one_step():
    np.testing.assert_array_equal(gae(REWARDS, VALUES, NEXT, ENDED, 0.5, 0.0), ERRORS)


def test_gae_with_lambda_one_is_the_return_to_the_end_less_the_value():
    # 0: 1 + 2/2 = 2, terminated; 1: 2; 2: 0 + 1/2 + 6/4 = 2, truncated; 3: 1 + 6/2 = 4; 4: 3 - 1/2 + 8/4 = 4.5;
    # 5: -1 + 8/2 = 3
    returns = _column(2, 2, 2, 4, 4.5, 3)
    np.testing.assert_array_equal(gae(REWARDS, VALUES, NEXT, ENDED, 0.5, 1.0), returns - VALUES)


def test_vtrace_equals_pencil():
    # λ = 1/2, and ratios 2, 1/2, 1, 1/4, 3, 1/2, of which at most 1 counts. Corrections c = v - V, advantages A:
    # A5 = -3, c5 = -1.5; A4 = 4 - 1.5/4 = 3.625, c4 = 3.625; A3 = 0 (end), c3 = 0; A2 = 0, c2 = 0;
    # A1 = 0 (end), c1 = 0; A0 = -2, c0 = -2
    ratios = _column(2, 0.5, 1, 0.25, 3, 0.5)
    advantages, targets = vtrace(REWARDS, VALUES, NEXT, ENDED, ratios, 0.5, 0.5)
    np.testing.assert_array_equal(advantages, _column(-2, 0, 0, 0, 3.625, -3))
    np.testing.assert_array_equal(targets - VALUES, _column(-2, 0, 0, 0, 3.625, -1.5))


@st.composite
def _histories(draw):
    steps, slots = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rewards, values, next_values = rng.normal(size=(3, steps, slots)).astype(np.float32)
    ended = rng.random((steps, slots)) < draw(st.sampled_from((0.0, 0.3, 1.0)))
    ratios = np.exp(rng.normal(size=(steps, slots))).astype(np.float32)
    gamma, lambda_ = (draw(st.sampled_from((0.0, 0.5, 0.97, 1.0))) for _ in range(2))
    return (rewards, values, next_values, ended), ratios, gamma, lambda_


@settings(max_examples=60, deadline=None)
@given(_histories())
def test_gae_equals_the_sum_of_errors_to_the_end(case):
    (rewards, values, next_values, ended), _, gamma, lambda_ = case
    found = gae(rewards, values, next_values, ended, gamma, lambda_)
    for start, slot in np.ndindex(rewards.shape):
        wanted, weight = 0.0, 1.0
        for t in range(start, len(rewards)):
            wanted += weight * (rewards[t, slot] + gamma * next_values[t, slot] - values[t, slot])
            weight *= gamma * lambda_
            if ended[t, slot]:
                break
        assert abs(found[start, slot] - wanted) < 1e-4


@settings(max_examples=60, deadline=None)
@given(_histories())
def test_vtrace_equals_the_sum_in_the_paper(case):
    """v_s = V(s) + Σ_t γ^(t-s) (Π_{i<t} c_i) ρ_t δ_t, with ρ = min(1, π/μ) and c = λ ρ, to the episode's end."""
    (rewards, values, next_values, ended), ratios, gamma, lambda_ = case
    advantages, targets = vtrace(rewards, values, next_values, ended, ratios, gamma, lambda_)
    rho = np.minimum(1.0, ratios.astype(float))
    for start, slot in np.ndindex(rewards.shape):
        target, traces = values[start, slot], 1.0
        for t in range(start, len(rewards)):
            error = rewards[t, slot] + gamma * next_values[t, slot] - values[t, slot]
            target += gamma ** (t - start) * traces * rho[t, slot] * error
            traces *= lambda_ * rho[t, slot]
            if ended[t, slot]:
                break
        assert abs(targets[start, slot] - target) < 1e-4
        assert abs(rho[start, slot] * advantages[start, slot] - (target - values[start, slot])) < 1e-4


@settings(max_examples=30, deadline=None)
@given(_histories())
def test_vtrace_of_the_policy_that_acted_is_gae(case):
    history, ratios, gamma, lambda_ = case
    advantages, targets = vtrace(*history, np.ones_like(ratios), gamma, lambda_)
    wanted = gae(*history, gamma, lambda_)
    np.testing.assert_allclose(advantages, wanted, atol=1e-6)
    np.testing.assert_allclose(targets, wanted + history[1], atol=1e-6)


@pytest.mark.parametrize("function", ["gae", "vtrace"])
def test_advantages_stay_in_float32_and_leave_their_arguments_alone(function):
    given_ = [REWARDS.copy(), VALUES.copy(), NEXT.copy(), ENDED.copy()]
    ratios = np.ones_like(REWARDS)
    found = [gae(*given_, 0.9, 0.8)] if function == "gae" else vtrace(*given_, ratios, 0.9, 0.8)
    assert {each.dtype for each in found} == {np.dtype(np.float32)}
    for mine, first in zip(given_, (REWARDS, VALUES, NEXT, ENDED), strict=True):
        np.testing.assert_array_equal(mine, first)


def _policy(shape=(4, 3), seed=0):
    """Logits, values, and what belongs to them, with a graph to both."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn((*shape, 3), generator=draw, requires_grad=True)
    values = torch.randn(shape, generator=draw, requires_grad=True)
    actions = torch.randint(3, shape, generator=draw)
    logs = torch.log_softmax(logits, -1)
    likelihoods, entropies = logs.gather(-1, actions[..., None])[..., 0], -(logs.exp() * logs).sum(-1)
    advantages, targets = torch.randn((2, *shape), generator=draw)
    return logits, values, likelihoods, entropies, advantages, targets


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_loss_of_the_policy_that_acted_has_the_gradient_of_a2c(normalise, compared):
    logits, values, likelihoods, entropies, advantages, targets = _policy()
    acted = likelihoods.detach().numpy() if compared else None
    told, weights = (advantages.numpy(), targets.numpy()), replace(PLAIN, normalise=normalise)
    loss = actor_critic_loss(likelihoods, acted, values, entropies, *told, weights)
    scaled = (advantages - advantages.mean()) / advantages.std() if normalise else advantages
    plain = -(likelihoods * scaled).mean() + 0.5 * 0.5 * ((values - targets) ** 2).mean() - 0.01 * entropies.mean()
    one, other = (torch.autograd.grad(each, (logits, values), retain_graph=True) for each in (loss.total, plain))
    assert_near(one, other, 1e-6)
    if not compared:  # the clipped loss has its gradient, and another level
        assert_near(loss.total.detach(), plain.detach(), 1e-6)
    assert loss.entropy == pytest.approx(float(entropies.detach().mean()), abs=1e-6)
    assert loss.value == pytest.approx(float((values - targets).detach().square().mean()), abs=1e-6)
    assert (loss.kl, loss.clipped, loss.sample_share) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.1, 1.0, True),
        (0.9, -1.0, True),
        (1.3, 1.0, False),  # already more probable by the clip: no further
        (1.3, -1.0, True),  # but back
        (0.7, -1.0, False),
        (0.7, 1.0, True),
    ],
)
def test_clip_stops_the_gradient_beyond_it_and_never_the_way_back(ratio, advantage, moves):
    likelihoods = torch.full((1, 1), -1.0, requires_grad=True)
    acted = likelihoods.detach().numpy() - np.float32(np.log(ratio))
    zero, none, constant = torch.zeros(1, 1), np.zeros((1, 1), np.float32), np.full((1, 1), advantage, np.float32)
    loss = actor_critic_loss(likelihoods, acted, zero, zero, constant, none, PLAIN)
    (gradient,) = torch.autograd.grad(loss.total, likelihoods)
    assert gradient.item() == pytest.approx(-ratio * advantage if moves else 0.0, abs=1e-6)
    assert loss.clipped == (abs(ratio - 1) > 0.2)


def _compared(likelihoods, acted):
    zero = torch.zeros_like(likelihoods)
    return actor_critic_loss(likelihoods, acted.numpy(), zero, zero, zero.numpy(), zero.numpy(), PLAIN)


def test_kl_estimate_of_actions_in_their_proportions_is_the_divergence():
    # μ = (1/2, 1/4, 1/4), π = (1/4, 1/4, 1/2): KL(μ‖π) = ½ ln 2 + 0 - ¼ ln 2 = ¼ ln 2
    acted, now = (torch.tensor(shares).log()[None] for shares in ([0.5, 0.5, 0.25, 0.25], [0.25, 0.25, 0.25, 0.5]))
    assert float(_compared(now, acted).kl) == pytest.approx(0.25 * np.log(2), abs=1e-6)


def test_sample_share_equals_pencil():
    # Ratios 1 and 3: (1 + 3)² / (2 (1 + 9))
    assert float(_compared(torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)).sample_share) == pytest.approx(0.8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=20))
def test_kl_is_never_negative_and_sample_share_is_a_share(pairs):
    now, acted = torch.tensor(pairs, dtype=torch.float32).T[:, None]
    loss = _compared(now, acted)
    assert float(loss.kl) > -1e-6
    assert 0 < float(loss.sample_share) <= 1 + 1e-6
    assert 0 <= float(loss.clipped) <= 1
    if torch.equal(now, acted):
        assert float(loss.sample_share) == 1


def test_loss_with_normalised_advantages_ignores_their_size_and_level():
    _, values, likelihoods, entropies, advantages, targets = _policy()
    acted = likelihoods.detach() + 0.1 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    weights = replace(PLAIN, normalise=True)
    one, other = (
        actor_critic_loss(likelihoods, acted.numpy(), values, entropies, each.numpy(), targets.numpy(), weights).total
        for each in (advantages, 50 * advantages + 7)
    )
    assert_near(one, other)


def test_explained_variance_is_one_of_the_truth_and_none_of_a_constant():
    targets = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert explained_variance(targets, targets) == 1
    assert explained_variance(targets + 3, targets) == pytest.approx(1)  # an offset is not variance
    assert explained_variance(np.full_like(targets, 2), targets) == pytest.approx(0, abs=1e-6)
    assert explained_variance(-targets, targets) == pytest.approx(-3, abs=1e-5)
    assert explained_variance(0.5 * targets, targets) == pytest.approx(0.75, abs=1e-6)
    assert explained_variance(targets, np.ones_like(targets)) == 0


numbers = st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=5))
def test_merged_moments_are_those_of_all_numbers(parts):
    merged = Moments()
    for part in parts:
        merged = merged.merged(moments_of(np.array(part)) if part else Moments())
    everything = np.concatenate([np.array(part, float) for part in parts])
    assert merged.size == len(everything)
    if len(everything):
        assert merged.mean == pytest.approx(everything.mean(), abs=1e-6)
        assert merged.squares == pytest.approx(((everything - everything.mean()) ** 2).sum(), rel=1e-6, abs=1e-6)
    if len(everything) > 1 and everything.std() > 1e-3:
        assert merged.scale == pytest.approx(1 / everything.std(), rel=1e-4)


def test_scale_of_nothing_is_one_and_of_a_constant_is_finite():
    assert Moments().scale == 1
    assert moments_of(np.array([5.0])).scale == 1
    assert moments_of(np.full(10, 5.0)).scale == pytest.approx(1e6)
    assert moments_of(np.array([1.0, 5.0])).scale == pytest.approx(0.5)


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 6])
def test_discounted_return_goes_on_over_fragments_and_begins_with_episodes(chance, gamma, steps):
    rng = np.random.default_rng(0)
    fragments = [(rng.normal(size=(steps, 5)).astype(np.float32), rng.random((steps, 5)) < chance) for _ in range(6)]
    fragments[3][1][-1] = True  # ends with the fragment
    tracked, running = Discounted(gamma, np.zeros(5)), [0.0] * 5
    for rewards, ended in fragments:
        seen = []
        for reward, over in zip(rewards, ended, strict=True):
            for slot in range(5):
                running[slot] = gamma * running[slot] + float(reward[slot])
                seen.append(running[slot])
                running[slot] = 0.0 if over[slot] else running[slot]
        moments = tracked.moments(rewards, ended)
        assert moments.size == len(seen)
        assert moments.mean == pytest.approx(np.mean(seen), abs=1e-9)
        assert moments.squares == pytest.approx(len(seen) * np.var(seen), abs=1e-9)
        np.testing.assert_allclose(tracked.carried, gamma * np.array(running), atol=1e-9)


@pytest.mark.parametrize(
    ("done", "share", "rise", "fall"),
    [
        (0.0, 0.0, 1.0, 1.0),  # no share of the budget: never away from the end, or the beginning
        (0.5, 0.0, 1.0, 1.0),
        (1.0, 0.0, 1.0, 1.0),
        (1.2, 0.0, 1.0, 1.0),
        (0.0, 0.5, 0.0, 1.0),
        (0.25, 0.5, 0.5, 1.0),
        (0.5, 0.5, 1.0, 1.0),
        (0.75, 0.5, 1.0, 0.5),
        (1.0, 0.5, 1.0, 0.0),
        (1.2, 0.5, 1.0, 0.0),  # training may go on beyond its budget
        (0.0, 1.0, 0.0, 1.0),
        (0.25, 1.0, 0.25, 0.75),
        (1.0, 1.0, 1.0, 0.0),
        (1.2, 1.0, 1.0, 0.0),
    ],
)
def test_schedules_hold_their_ends(done, share, rise, fall):
    assert rising(done, share) == pytest.approx(rise)
    assert falling(done, share) == pytest.approx(fall)
