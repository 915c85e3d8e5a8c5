"""A3C with one worker and PPO's passes against a plain A2C loop in ordinary torch, and when fragments are renewed."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from envs.swing import SwingVectorEnv
from envs.worlds import WorldVectorEnv
from rl.learning.gradients import (
    A3cWorker,
    AsyncPpoWorker,
    Optimiser,
    Order,
    Recipe,
    advantages_of,
    answers,
    beside,
    columns_of,
    fragment_loss,
    learn,
    minibatches,
    renewed,
)
from rl.learning.losses import actor_critic_loss, vtrace
from rl.learning.network import SwingNet
from rl.learning.progress import Moments
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig
from rough import EVERY_OPTION, rough_market
from stepwise import Player, assert_near, flat, lively

T, SLOTS, UPDATES = 16, 8, 12
GAMMA, LAMBDA, VALUE, ENTROPY, CLIP, LR = 0.97, 0.9, 0.5, 0.01, 0.5, 3e-3
RECIPE = Recipe(steps=T, gamma=GAMMA, lambda_=LAMBDA, value=VALUE, epochs=2, minibatches=2, max_age=5)
ORDER = Order(version=0, cost_scale=1.0, reward_scale=0.7, entropy=ENTROPY)


WORLDS = {
    "prop": {"world": {"name": "prop"}, "episode_steps": 24},
    "gp": {"world": {"name": "gp"}, "action": "continuous", "episode_steps": 64},
}
ROUGH = {**EVERY_OPTION, "action": "discrete", "episode_sessions": 9}


@cache
def _rough():
    return rough_market()


def _env(kind):
    if kind == "rough":
        return SwingVectorEnv(SLOTS, _rough(), (50, 640), settings=ROUGH, autoreset_mode="SameStep")
    return WorldVectorEnv(SLOTS, WORLDS[kind], "SameStep")


def _net(env, **model):
    size = ModelConfig(**{"hidden": 8, "dense": 8, **model})
    return lively(SwingNet(env.market_features, env.config.action, size, len(env.portfolio_features)), 0.3)


def _worker(kind="prop", make=AsyncPpoWorker, recipe=RECIPE, **model):
    env = _env(kind)
    return make(Sampler(_net(env, **model), env, seed=3), recipe, seed=5)


def _moved(worker, step=0.05):
    """Weights near the worker's."""
    vector = worker.weights.vector()
    return vector + step * np.random.default_rng(0).standard_normal(len(vector), np.float32)


def _optimiser(net):
    return Optimiser(copy.deepcopy(net), CLIP)


class _PlainA2c:
    """Synchronous advantage actor-critic as textbooks have it, in step with what another one decided."""

    def __init__(self, net, env):
        self.net, self.player = net, Player(net, env, seed=3)
        self.adam = torch.optim.Adam(net.parameters(), eps=1e-5)
        self.discounted, self.seen = np.zeros(env.num_envs), []

    def update(self, actions, lr, cost_scale, normalise):
        self.player.env.cost_scale = cost_scale
        played = self.player.play(actions)
        scale = 1 / np.std(self.seen) if self.seen else 1.0
        ended = played.terminated | played.truncated
        for reward, over in zip(played.rewards, ended, strict=True):
            self.discounted = GAMMA * self.discounted + reward
            self.seen += self.discounted.tolist()
            self.discounted[over] = 0
        values, advantages = played.values.detach().numpy(), np.zeros((T + 1, SLOTS))
        for t in reversed(range(T)):
            error = scale * played.rewards[t] + GAMMA * played.next_values[t] - values[t]
            advantages[t] = error + GAMMA * LAMBDA * np.where(ended[t], 0, advantages[t + 1])
        targets = torch.tensor(values + advantages[:T]).float()
        told = torch.tensor(advantages[:T]).float()
        if normalise:
            told = (told - told.mean()) / told.std()
        loss = -(played.log_likelihoods * told).mean() - ENTROPY * played.entropies.mean()
        loss = loss + VALUE * 0.5 * torch.nn.functional.mse_loss(played.values, targets)
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        return float(norm)


@pytest.mark.parametrize(
    ("kind", "normalise", "model"),
    [
        ("prop", False, {}),
        ("prop", True, {}),
        ("prop", True, {"layers": 2, "attention_heads": 2, "attention_sessions": 6}),
        ("gp", True, {}),
        ("rough", False, {}),
    ],
)
def test_a3c_of_one_worker_equals_plain_a2c_update_for_update(kind, normalise, model):
    worker = _worker(kind, A3cWorker, replace(RECIPE, normalise=normalise), **model)
    optimiser, plain = _optimiser(worker.sampler.net), _PlainA2c(copy.deepcopy(worker.sampler.net), _env(kind))
    moments, norms, before = Moments(), [], optimiser.vector()
    for number in range(UPDATES):
        done = number / UPDATES
        cost_scale, lr = min(1.0, 2 * done), LR * min(1.0, 2 - 2 * done)
        order = Order(number, cost_scale, moments.scale, ENTROPY)
        gradient, report = worker.gradient(optimiser.vector(), order)
        assert (report.version, report.acted, report.steps) == (number, number, T * SLOTS)
        moments = moments.merged(report.moments)
        norm = optimiser.apply(gradient, lr)
        norms.append(norm)
        assert norm == pytest.approx(plain.update(worker._last.actions, lr, cost_scale, normalise), rel=1e-3)
        assert_near(torch.tensor(optimiser.vector()), torch.tensor(flat(list(plain.net.parameters()))))
    assert np.abs(optimiser.vector() - before).max() > 5 * LR
    assert max(norms) > CLIP, "no gradient was clipped"


def test_gradient_of_norm_below_the_clip_is_applied_whole():
    worker = _worker()
    optimiser, net = _optimiser(worker.sampler.net), copy.deepcopy(worker.sampler.net)
    adam = torch.optim.Adam(net.parameters(), eps=1e-5)
    rng = np.random.default_rng(0)
    for length in (0.01, 0.4999, 0.5001, 30.0, 0.0):
        gradient = rng.standard_normal(len(optimiser.vector()), np.float32)
        gradient *= np.float32(length / np.linalg.norm(gradient))
        kept = gradient.copy()
        assert optimiser.apply(gradient, LR) == pytest.approx(length, abs=1e-5)
        np.testing.assert_array_equal(gradient, kept)
        for parameter, part in zip(
            net.parameters(),
            torch.split(torch.from_numpy(kept), [parameter.numel() for parameter in net.parameters()]),
            strict=True,
        ):
            parameter.grad = part.clone().view_as(parameter)
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        adam.param_groups[0]["lr"] = LR
        adam.step()
        assert_near(torch.tensor(optimiser.vector()), torch.tensor(flat(list(net.parameters()))), 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_that_is_not_finite_changes_neither_weights_nor_moments(bad):
    worker = _worker()
    one, other = (_optimiser(worker.sampler.net) for _ in range(2))
    good = np.random.default_rng(0).standard_normal((3, len(one.vector())), np.float32)
    spoilt = good[0].copy()
    spoilt[7] = bad
    for gradient in good:
        before, state = one.vector(), copy.deepcopy(one.adam.state_dict())
        assert not np.isfinite(one.apply(spoilt, LR))
        np.testing.assert_array_equal(one.vector(), before)
        after = one.adam.state_dict()["state"]
        assert after.keys() == state["state"].keys()
        for number, kept in state["state"].items():
            assert all(torch.equal(after[number][name], value) for name, value in kept.items())
        one.apply(gradient, LR)
        other.apply(gradient, LR)
    np.testing.assert_array_equal(one.vector(), other.vector())


@pytest.mark.parametrize("kind", ["prop", "gp", "rough"])
def test_ppo_of_one_pass_over_all_slots_is_the_update_of_a2c(kind):
    recipe = replace(RECIPE, epochs=1, minibatches=1)
    a3c, ppo = _worker(kind, A3cWorker, recipe), _worker(kind, AsyncPpoWorker, recipe)
    one, other = _optimiser(a3c.sampler.net), _optimiser(ppo.sampler.net)
    for number in range(4):
        order = ORDER._replace(version=number)
        gradient, _ = a3c.gradient(one.vector(), order)
        norm = one.apply(gradient, LR)
        fragment, report = ppo.fragment(other.vector(), order)
        assert (report.version, report.steps, fragment.version) == (number, T * SLOTS, number)
        figures, taken, refused = learn(other, [fragment], recipe, LR, ENTROPY, np.random.default_rng(0))
        assert (taken, refused) == (1, 0)
        assert figures["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        assert figures["kl"] == pytest.approx(0, abs=1e-6)
        assert_near(torch.tensor(one.vector()), torch.tensor(other.vector()))


def test_ppo_learns_from_the_fragments_of_all_workers_as_from_one_of_all_slots():
    worker = _worker("rough", recipe=replace(RECIPE, epochs=1, minibatches=1))
    fragment, _ = worker.fragment(worker.weights.vector(), ORDER)
    parts = [columns_of(fragment, columns) for columns in np.split(np.arange(SLOTS), [3])]
    one, other = _optimiser(worker.sampler.net), _optimiser(worker.sampler.net)
    told = [
        learn(each, brought, worker.recipe, LR, ENTROPY, np.random.default_rng(0))[0]
        for each, brought in ((one, [fragment]), (other, parts))
    ]
    assert_near(torch.tensor(one.vector()), torch.tensor(other.vector()), 1e-6)
    assert told[0].keys() == told[1].keys()
    assert all(told[0][name] == pytest.approx(told[1][name], abs=1e-5) for name in told[0])


@pytest.mark.parametrize(("slots", "groups"), [(8, 1), (8, 3), (8, 8), (3, 8)])
def test_minibatches_visit_every_slot_once_in_each_pass(slots, groups):
    recipe = replace(RECIPE, epochs=3, minibatches=groups)
    drawn = list(minibatches(slots, recipe, np.random.default_rng(0)))
    per_pass = min(groups, slots)
    assert len(drawn) == 3 * per_pass
    passes = [drawn[at : at + per_pass] for at in range(0, len(drawn), per_pass)]
    for each in passes:
        assert sorted(np.concatenate(each)) == list(range(slots))
        sizes = [len(columns) for columns in each]
        assert max(sizes) - min(sizes) <= 1
    if 1 < per_pass < slots:
        for one, other in pairwise(passes):
            assert any(mine.tolist() != theirs.tolist() for mine, theirs in zip(one, other, strict=True))


def test_passes_end_when_the_policy_has_moved_beyond_target_kl():
    worker, taken = _worker(), {}
    fragment, _ = worker.fragment(worker.weights.vector(), ORDER)
    for target in (None, 1e-5, 1e9):
        recipe = replace(RECIPE, epochs=3, minibatches=4, target_kl=target)
        _, taken[target], _ = learn(
            _optimiser(worker.sampler.net), [fragment], recipe, LR, ENTROPY, np.random.default_rng(0)
        )
    assert taken == {None: 12, 1e9: 12, 1e-5: 2}  # the first gradient is of the policy that acted: it has not moved


def test_ppo_refuses_the_minibatch_of_a_slot_that_broke_and_learns_from_the_rest():
    worker = _worker()
    fragment, _ = worker.fragment(worker.weights.vector(), ORDER)
    fragment.rewards[3, 2] = np.nan
    optimiser = _optimiser(worker.sampler.net)
    recipe = replace(RECIPE, epochs=2, minibatches=SLOTS)
    _, taken, refused = learn(optimiser, [fragment], recipe, LR, ENTROPY, np.random.default_rng(0))
    assert (taken, refused) == (2 * (SLOTS - 1), 2)
    assert np.isfinite(optimiser.vector()).all()
    assert (optimiser.vector() != worker.weights.vector()).all()


def test_fragment_is_acted_with_the_weights_that_came_and_its_rewards_are_scaled():
    worker, twin = _worker(), _worker()
    vector = _moved(worker)
    fragment, report = worker.fragment(vector, Order(9, 0.25, 0.5, ENTROPY))
    np.testing.assert_array_equal(worker.weights.vector(), vector)
    assert (fragment.version, report.version, report.acted) == (9, 9, 9)
    twin.sampler.env.cost_scale = 0.25
    played = Player(worker.sampler.net, twin.sampler.env, seed=3).play(fragment.actions)
    np.testing.assert_allclose(fragment.rewards, 0.5 * played.rewards, atol=1e-6)
    assert_near(torch.tensor(fragment.values), played.values.detach())
    assert report.moments.size == T * SLOTS
    discounted, total = np.zeros(SLOTS), 0.0
    for reward in played.rewards:
        discounted = GAMMA * discounted + reward
        total += discounted.sum()
    assert report.moments.mean == pytest.approx(total / (T * SLOTS), abs=1e-6)


def test_a3c_measures_the_move_of_its_policy_every_eighth_gradient():
    worker = _worker(make=A3cWorker)
    vector, reports = worker.weights.vector(), []
    for number in range(16):
        if number == 15:
            vector = _moved(worker)
        reports.append(worker.gradient(vector, ORDER._replace(version=number))[1].figures)
    assert [number for number, figures in enumerate(reports) if "kl" in figures] == [7, 15]
    assert reports[7]["kl"] == pytest.approx(0, abs=1e-6)
    assert reports[7]["sample_share"] == pytest.approx(1, abs=1e-5)
    assert reports[15]["kl"] > 1e-3
    assert reports[15]["sample_share"] < 0.999
    assert all({"entropy", "value_loss", "explained_variance"} <= figures.keys() for figures in reports)


def _played(worker, versions):
    """Gradients at ever other weights; returns the reports, and whether the fragment was new."""
    vector, reports, new = worker.weights.vector(), [], []
    rng = np.random.default_rng(0)
    for version in versions:
        kept = worker._kept
        _, report = worker.gradient(vector, ORDER._replace(version=version))
        reports.append(report)
        new.append(worker._kept is not kept)
        vector = vector + 0.02 * rng.standard_normal(len(vector), np.float32)
    return reports, new


def test_async_ppo_samples_again_exactly_when_the_fragment_is_used_up():
    worker = _worker(recipe=replace(RECIPE, epochs=3, minibatches=2, max_age=100))
    reports, new = _played(worker, range(14))
    assert [number for number, each in enumerate(new) if each] == [0, 6, 12]
    for number, report in enumerate(reports):
        assert report.version == number
        assert report.acted == number - number % 6
        first = number % 6 == 0
        assert report.steps == (T * SLOTS if first else 0)
        assert report.moments.size == report.steps
        assert first or not len(report.episodes.returns)
        if first:  # the policy that acted is the one that learns
            assert report.figures["kl"] == pytest.approx(0, abs=1e-6)
            assert report.figures["sample_share"] == pytest.approx(1, abs=1e-5)
            assert report.figures["clipped"] == 0
        else:
            assert report.figures["kl"] > 1e-5
            assert report.figures["sample_share"] < 1
    assert sum(len(report.episodes.returns) for report in reports) == SLOTS * (3 * T // 24)


def test_async_ppo_drops_a_fragment_that_is_too_old():
    worker = _worker(recipe=replace(RECIPE, epochs=9, minibatches=2, max_age=5))
    reports, new = _played(worker, (0, 3, 5, 6, 11, 12, 13, 40))
    assert new == [True, False, False, True, False, True, False, True]
    assert [report.acted for report in reports] == [0, 0, 0, 6, 6, 12, 12, 40]


def test_async_ppo_leaves_a_fragment_behind_that_the_policy_has_moved_from():
    worker = _worker(recipe=replace(RECIPE, epochs=4, minibatches=2, target_kl=1e-5, max_age=100))
    reports, new = _played(worker, range(6))
    assert new == [True, False] * 3
    assert all((report.figures["kl"] > 1e-5) is not fresh for report, fresh in zip(reports, new, strict=True))


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("kind", ["prop", "gp", "rough"])
def test_async_ppo_gradient_is_that_of_its_loss_at_the_newest_weights(kind, correct):
    worker = _worker(kind, recipe=replace(RECIPE, vtrace=correct))
    first, _ = worker.gradient(worker.weights.vector(), ORDER)
    vector = _moved(worker)
    second, report = worker.gradient(vector, ORDER._replace(version=1))
    net, kept, (one, two, *_) = worker.sampler.net, worker._kept, minibatches(SLOTS, RECIPE, np.random.default_rng(5))
    assert (report.acted, report.figures["kl"] > 0.001) == (0, True)

    def gradient(loss):
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss.total, worker.weights.parameters)])

    weights = worker.recipe.weights(ORDER.entropy)
    plain = gradient(fragment_loss(net, kept, two, *advantages_of(kept, worker.recipe), weights))
    if correct:
        part = columns_of(kept, two)
        likelihoods, values, entropies = answers(net, part)
        now, ended = values.detach().numpy(), part.terminated | part.truncated
        following = part.next_values.copy()
        for t, slot in np.ndindex(T - 1, len(two)):
            if not ended[t, slot]:
                following[t, slot] = now[t + 1, slot]
        ratios = np.exp(likelihoods.detach().numpy() - part.log_likelihoods)
        told = vtrace(part.rewards, now, following, ended, ratios, GAMMA, LAMBDA)
        wanted = gradient(actor_critic_loss(likelihoods, part.log_likelihoods, values, entropies, *told, weights))
        assert not torch.allclose(wanted, plain, atol=1e-3), "V-trace corrects nothing"
    else:
        wanted = plain
    assert_near(torch.tensor(second), wanted)
    with torch.no_grad():
        for parameter, old in zip(net.parameters(), _net(_env(kind)).parameters(), strict=True):
            parameter.copy_(old)
    assert_near(torch.tensor(first), gradient(fragment_loss(net, kept, one, *advantages_of(kept, RECIPE), weights)))


def test_renewed_next_values_keep_those_of_ends_and_of_the_last_step():
    fragment, _ = _worker("rough").fragment(_worker("rough").weights.vector(), ORDER)
    values = np.arange(T * SLOTS, dtype=np.float32).reshape(T, SLOTS) + 100
    found, ended = renewed(values, fragment), fragment.terminated | fragment.truncated
    assert ended[:-1].any()
    for t, slot in np.ndindex(T, SLOTS):
        kept = t == T - 1 or ended[t, slot]
        assert found[t, slot] == (fragment.next_values if kept else np.roll(values, -1, axis=0))[t, slot]


@pytest.mark.parametrize("make", [A3cWorker, AsyncPpoWorker])
def test_fragments_of_one_step_give_finite_gradients(make):
    worker = _worker(make=make, recipe=replace(RECIPE, steps=1, epochs=1))
    for version in range(4):
        gradient, report = worker.gradient(worker.weights.vector(), ORDER._replace(version=version))
        assert np.isfinite(gradient).all()
        assert gradient.any()
        assert all(np.isfinite(value) for value in report.figures.values())


def test_critic_dropout_is_in_the_second_pass_and_not_in_the_one_that_acted():
    worker, plain = _worker(critic_dropout=0.5), _worker()
    torch.manual_seed(0)
    for _ in range(2):
        vector = plain.weights.vector()
        (one, _), (other, _) = (each.fragment(vector, ORDER) for each in (worker, plain))
        np.testing.assert_allclose(one.values, other.values, atol=1e-6)
        likelihoods, values, _ = answers(worker.sampler.net, one)  # leaves the network in training
        assert_near(likelihoods.detach(), torch.tensor(one.log_likelihoods))
        assert not np.allclose(values.detach().numpy(), one.values, atol=1e-2)


def test_a3c_drops_before_the_critic_alone_and_estimates_advantages_without():
    worker, plain = _worker("rough", critic_dropout=0.5), _worker("rough")
    torch.manual_seed(0)
    vector = plain.weights.vector()
    sampled = []
    for each in (worker, plain):
        each.weights.load(vector)
        sampled.append(each.sampler.sample(T, grad=True)[:2])
    (one, dropped), (other, whole) = sampled
    for name in ("actions", "values", "next_values", "log_likelihoods"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert_near(dropped.log_likelihoods, whole.log_likelihoods)
    assert not np.allclose(dropped.values.detach(), whole.values.detach(), atol=1e-2)


def test_two_fragments_beside_each_other_have_the_advantages_of_each():
    worker = _worker("rough")
    fragments = [worker.fragment(worker.weights.vector(), ORDER)[0] for _ in range(2)]
    whole = advantages_of(beside(fragments), RECIPE)
    for number, fragment in enumerate(fragments):
        for joined, alone in zip(whole, advantages_of(fragment, RECIPE), strict=True):
            np.testing.assert_array_equal(joined[:, number * SLOTS :][:, :SLOTS], alone)
