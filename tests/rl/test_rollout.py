"""The sampler, which runs over a fragment before its first action, against a loop that takes one step at a time."""

from __future__ import annotations

import copy
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from data_pipeline.errors import ConfigError
from envs.contract import ActionKind
from envs.swing import SwingVectorEnv
from envs.worlds import WorldVectorEnv
from rl.learning.gradients import answers, beside, columns_of
from rl.learning.network import SwingNet
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig
from rough import EVERY_OPTION, rough_market
from stepwise import Player, assert_near, gradients, lively

T = 16
MODELS = {
    "plain": ModelConfig(hidden=8, dense=8),
    "deep attentive": ModelConfig(hidden=8, dense=8, layers=2, attention_heads=2, attention_sessions=6),
}
WORLDS = {
    "prop": {"world": {"name": "prop"}, "show_position": True},
    "hmm": {"world": {"name": "hmm"}, "show_position": False},
    "gp": {"world": {"name": "gp"}, "action": "continuous"},
}
LASTING = (1, 7, 24, 64)  # shorter than T, not a divisor of it, a multiple


def _world(name, episode_steps, slots=6, mode=AutoresetMode.SAME_STEP):
    return WorldVectorEnv(slots, {**WORLDS[name], "episode_steps": episode_steps}, mode)


@pytest.fixture(scope="module")
def rough():
    return rough_market()


def _swing(rough, slots=16, **more):
    return SwingVectorEnv(slots, rough, (50, 640), settings={**EVERY_OPTION, **more}, autoreset_mode="SameStep")


def _net(env, model=MODELS["plain"], seed=0):
    return lively(SwingNet(env.market_features, env.config.action, model, len(env.portfolio_features)), seed=seed)


def _draws(rng, net, slots):
    """What the sampler is about to add to the outputs, `[T, B, A]`."""
    if net.action is ActionKind.CONTINUOUS:
        return rng.standard_normal((T, slots, 1), np.float32) * net.log_std.detach().exp().numpy()
    return -np.log(-np.log(rng.random((T, slots, 3), np.float32).clip(1e-30)))


def _weights(seed):
    return torch.randn((3, T, 1), generator=torch.Generator().manual_seed(seed))


def _assert_same_fragments(env, twin, model, fragments, explore=True):
    """Samples on one environment, replays on its twin, compares all there is; returns the fragments."""
    net, seen = _net(env, model), []
    sampler, player = Sampler(net, env, seed=3), Player(net, twin, seed=3)
    for number in range(fragments):
        rng = copy.deepcopy(sampler.rng)
        fragment, forward, episodes = sampler.sample(T, grad=True, explore=explore)
        played = player.play(fragment.actions)
        _assert_chosen(net, fragment, played, _draws(rng, net, env.num_envs) if explore else 0.0)
        split = env.market_features
        assert fragment.market.tobytes() == np.ascontiguousarray(played.obs[..., :split]).tobytes()
        assert fragment.portfolio.tobytes() == np.ascontiguousarray(played.obs[..., split:]).tobytes()
        assert fragment.rewards.tobytes() == played.rewards.astype(np.float32).tobytes()
        for name in ("terminated", "truncated", "starts"):
            np.testing.assert_array_equal(getattr(fragment, name), getattr(played, name))
        for name in ("values", "log_likelihoods", "next_values"):
            assert_near(torch.tensor(getattr(fragment, name)), torch.as_tensor(getattr(played, name)).detach().float())
        assert_near(forward.values, played.values)
        assert_near(forward.log_likelihoods, played.log_likelihoods)
        assert_near(forward.entropies, played.entropies)
        for mine, theirs in zip(fragment.state, (played.h, played.c), strict=False):
            assert_near(torch.tensor(mine), theirs)
            assert (mine[:, fragment.starts[0]] == 0).all()
        ended = sorted(zip(episodes.returns, episodes.lengths, strict=True))
        np.testing.assert_allclose(ended, sorted(zip(played.returns, played.lengths, strict=True)), atol=1e-5)
        _assert_same_gradients(net, fragment, forward, played, number)
        seen.append(fragment)
    return seen


def _assert_chosen(net, fragment, played, noise):
    """Compares actions with the largest sum, where the second largest is not as large but for rounding."""
    sums = played.outputs.detach().numpy() + noise
    if net.action is ActionKind.CONTINUOUS:
        np.testing.assert_allclose(fragment.actions, sums[..., 0], atol=1e-5)
        return
    order = np.sort(sums, axis=-1)
    clear = order[..., -1] - order[..., -2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(fragment.actions[clear], sums.argmax(-1)[clear])


def _assert_same_gradients(net, fragment, forward, played, seed):
    """Compares the graph that acted, a second pass over the fragment, and the loop's."""
    one, two, three = _weights(seed)
    likelihoods, values, entropies = answers(net, fragment)
    passes = [
        (forward.log_likelihoods, forward.values, forward.entropies),
        (likelihoods, values, entropies),
        (played.log_likelihoods, played.values, played.entropies),
    ]
    assert_near(likelihoods, played.log_likelihoods)
    assert_near(values, played.values)
    acted, again, plain = (gradients((one * p + two * v + three * e).mean(), net) for p, v, e in passes)
    for name, gradient in plain.items():
        assert_near(acted[name], gradient)
        assert_near(again[name], gradient)
    assert plain["lstm.weight_ih_l0"].abs().max() > 1e-4


DEEP = {("prop", 1), ("hmm", 7), ("gp", 24)}
CASES = [(*case, "plain") for case in itertools.product(WORLDS, LASTING)] + [(*case, "deep attentive") for case in DEEP]


@pytest.mark.parametrize(("name", "lasting", "model"), sorted(CASES))
def test_sample_of_a_world_equals_one_step_at_a_time(name, lasting, model):
    fragments = _assert_same_fragments(_world(name, lasting), _world(name, lasting), MODELS[model], 4)
    assert sum(fragment.truncated[:, 0].sum() for fragment in fragments) == 4 * T // lasting


@pytest.mark.parametrize("name", WORLDS)
def test_sample_without_exploring_takes_the_most_probable(name):
    _assert_same_fragments(_world(name, 24), _world(name, 24), MODELS["plain"], 2, explore=False)


@pytest.mark.parametrize(
    ("action", "sessions", "model"),
    [("discrete", 40, "deep attentive"), ("continuous", 40, "plain"), ("discrete", 5, "deep attentive")],
)
def test_sample_of_a_rough_market_equals_one_step_at_a_time(rough, action, sessions, model):
    more = {"action": action, "episode_sessions": sessions}
    env, delisted = _swing(rough, 10, **more), []
    step = env.step

    def watched(actions):
        at_last_bar = (env.accounts._t >= env.accounts._last).all(axis=0)
        answer = step(actions)
        delisted.append(at_last_bar & answer[2])
        return answer

    env.step = watched
    seen = _assert_same_fragments(env, _swing(rough, 10, **more), MODELS[model], 6)
    terminated, truncated, starts = (
        np.concatenate([getattr(each, name) for each in seen]) for name in ("terminated", "truncated", "starts")
    )
    ruined, gone = terminated & ~np.array(delisted), np.array(delisted)
    assert truncated.any()
    assert gone.any() or sessions == 5
    assert ruined.any() or sessions == 5
    assert (starts.reshape(6, T, -1).sum(axis=1) > 1).any(), "no slot began twice in a fragment"
    assert starts[T::T].any()
    assert (starts.any(axis=1) & ~starts.all(axis=1)).any() or sessions == 5, "all slots began together"
    assert (seen[0].allowed is None) == (action == "continuous")


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fragments_of_any_length_are_one_history(rough, steps):
    """The same 20 steps, in shorter fragments: sampled greedily, for noise is drawn by the fragment."""
    whole, parts = (Sampler(_net(_swing(rough)), _swing(rough, episode_sessions=7), seed=3) for _ in range(2))
    at_once, _, one = whole.sample(20, explore=False)
    pieces = [parts.sample(steps, explore=False) for _ in range(20 // steps)]
    for name in ("market", "portfolio", "actions", "rewards", "starts", "values", "next_values", "log_likelihoods"):
        joined = np.concatenate([getattr(fragment, name) for fragment, *_ in pieces])
        np.testing.assert_allclose(joined, getattr(at_once, name), atol=1e-5, err_msg=name)
    assert sum(len(each.returns) for *_, each in pieces) == len(one.returns) > 24
    assert np.isclose(sum(each.returns.sum() for *_, each in pieces), one.returns.sum(), atol=1e-4)
    assert sum(each.lengths.sum() for *_, each in pieces) == one.lengths.sum()
    for mine, theirs in zip(whole._state, parts._state, strict=True):
        assert_near(mine, theirs)


def test_sampled_actions_have_the_probabilities_of_the_policy():
    env = _world("prop", 64, slots=128)
    sampler = Sampler(_net(env), env, seed=0)
    chosen, expected = np.zeros(3), np.zeros((2, 3))
    for _ in range(4):
        fragment, *_ = sampler.sample(T)
        with torch.no_grad():
            answered = []
            for action in range(3):
                asked = replace(fragment, actions=np.full_like(fragment.actions, action))
                answered.append(answers(sampler.net, asked)[0].exp().numpy())
        share = np.stack(answered, -1)
        np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
        chosen += np.bincount(fragment.actions.ravel(), minlength=3)
        expected += [share.sum((0, 1)), (share * (1 - share)).sum((0, 1))]
    assert (np.abs(chosen - expected[0]) < 4 * np.sqrt(expected[1])).all()
    assert (np.abs(chosen - chosen.mean()) > 4 * np.sqrt(expected[1])).any(), "even chances: the test shows nothing"


def test_sampled_numbers_deviate_as_the_policy_says():
    env = _world("gp", 64, slots=128)
    sampler = Sampler(_net(env), env, seed=0)
    fragment, _, _ = sampler.sample(T)
    with torch.no_grad():
        density = answers(sampler.net, fragment)[0].numpy()
    log_std = sampler.net.log_std.item()
    squares = -2 * (density + log_std + 0.5 * np.log(2 * np.pi))
    assert abs(squares.mean() - 1) < 4 * (2 / squares.size) ** 0.5


def test_sample_leaves_no_graph_unless_asked():
    env = _world("prop", 24)
    sampler = Sampler(_net(env), env, seed=0)
    assert not any(part.requires_grad for part in sampler.sample(T)[1])
    assert all(part.requires_grad for part in sampler.sample(T, grad=True)[1])
    assert not any(part.requires_grad for part in sampler._state)


def test_restart_begins_new_episodes_from_a_zero_state():
    env = _world("prop", 64)
    sampler = Sampler(_net(env), env, seed=0)
    first, *_ = sampler.sample(T, explore=False)
    sampler.sample(T)
    sampler.restart(0)
    again, *_ = sampler.sample(T, explore=False)
    for field in fields(first):
        mine, theirs = getattr(first, field.name), getattr(again, field.name)
        for one, other in zip(mine, theirs, strict=True) if field.name == "state" else [(mine, theirs)]:
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    assert again.starts[0].all()


def test_long_only_never_sells_short_and_stays_finite(rough):
    env = _swing(rough, action="discrete", limits={**EVERY_OPTION["limits"], "long_only": True})
    net = _net(env)
    with torch.no_grad():
        net.actor.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # wants nothing but to
    sampler, chosen = Sampler(net, env, seed=0), set()
    for explore in (True, False):
        fragment, forward, _ = sampler.sample(T, grad=True, explore=explore)
        chosen |= set(fragment.actions.ravel().tolist())
        assert not fragment.allowed[..., 0].any()
        assert fragment.allowed[..., 1:].all()
        short = replace(fragment, actions=np.zeros_like(fragment.actions))
        assert (answers(net, short)[0].exp() == 0).all()
        entropies = answers(net, fragment)[2]
        assert torch.isfinite(entropies).all()
        assert (entropies <= np.log(2) + 1e-6).all()
        assert (entropies > 0.01).any()
        loss = (forward.log_likelihoods + forward.entropies).mean()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, net).values())
    assert chosen == {1, 2}


def test_environment_that_resets_in_the_next_step_is_refused_by_name():
    env = _world("prop", 24, mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match=r"autoreset_mode \S*N(EXT_STEP|extStep).*autoreset_mode=SameStep"):
        Sampler(_net(env), env)


@pytest.mark.parametrize(("market", "portfolio"), [(2, 1), (1, 0), (1, 2)])
def test_network_for_other_features_is_refused(market, portfolio):
    env = _world("prop", 24)
    with pytest.raises(ConfigError, match=rf"features \(1, 1\), network for \({market}, {portfolio}\)"):
        Sampler(SwingNet(market, ActionKind.DISCRETE, MODELS["plain"], portfolio), env)


@pytest.mark.parametrize("action", list(ActionKind))
def test_columns_beside_each_other_are_the_fragment_again(rough, action):
    env = _swing(rough, action=action.value)
    sampler = Sampler(_net(env, MODELS["deep attentive"]), env, seed=0)
    sampler.sample(T)
    fragment = replace(sampler.sample(T)[0], version=7)
    groups = np.split(np.arange(16), [1, 7])
    parts = [columns_of(fragment, group) for group in groups]
    assert [part.rewards.shape for part in parts] == [(T, 1), (T, 6), (T, 9)]
    assert {part.version for part in parts} == {7}
    whole = beside([parts[0], replace(parts[1], version=5), parts[2]])
    assert whole.version == 5
    for field in fields(fragment):
        if field.name == "version":
            continue
        mine, theirs = getattr(fragment, field.name), getattr(whole, field.name)
        for one, other in zip(mine, theirs, strict=True) if field.name == "state" else [(mine, theirs)]:
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    assert (fragment.allowed is None) == (action is ActionKind.CONTINUOUS)
    everything, some = answers(sampler.net, fragment), answers(sampler.net, parts[1])
    for one, other in zip(everything, some, strict=True):
        assert_near(one[:, groups[1]], other)
