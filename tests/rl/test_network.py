"""The network: its fused forms against one observation at a time, values and gradients."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.scaling import Scaler
from envs.contract import ActionKind
from envs.lstm import LstmPolicy
from rl.learning import network
from rl.learning.network import Joined, State, SwingNet, net_of, policy_arrays
from rl.learning.settings import ModelConfig
from stepwise import Rows, assert_near, attention, flat, gradients, lively

F, P, B, T = 3, 2, 5, 12
ATTENTION = ((0, 1), (1, 1), (2, 5), (4, 40))  # heads and sessions: none, itself alone, fewer and more than T
SHAPES = [(layers, *attention) for layers in (1, 2) for attention in ATTENTION]
shapes = pytest.mark.parametrize(("layers", "heads", "sessions"), SHAPES)


def _net(layers=1, heads=0, sessions=1, action=ActionKind.DISCRETE, **more):
    sizes = {"hidden": 8, "dense": 7, "layers": layers, "attention_heads": heads, "attention_sessions": sessions}
    return lively(SwingNet(F, action, ModelConfig(**{**sizes, **more}), P)).eval()


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _begun(net, told=9):
    """Rows in the middle of their episodes, and the state that the network has of them."""
    rows, market = Rows(net, B), _noise(told, B, F, seed=9)
    for row in market:
        rows.tell(row)
    rows.detach()
    return rows, net.recur(market, net.zero_state(B))[1]


def _one_by_one(rows, obs):
    return [torch.stack(each) for each in zip(*map(rows.answer, obs), strict=True)]


@shapes
def test_forward_of_two_fragments_equals_one_observation_at_a_time(layers, heads, sessions):
    net = _net(layers, heads, sessions)
    rows, state = Rows(net, B), net.zero_state(B)
    for fragment in range(2):
        obs = _noise(T, B, F + P, seed=fragment)
        outputs, values, state = net(obs, state)
        for fused, plain in zip((outputs, values), _one_by_one(rows, obs), strict=True):
            assert_near(fused, plain)
            assert float(plain.detach().std()) > 0.1
        assert_near(state.h, torch.stack(rows.h))
        assert_near(state.c, torch.stack(rows.c))
        known = min((fragment + 1) * T, sessions - 1) if heads else 0
        assert state.known.tolist() == [known] * B
        for b, own in enumerate(rows.own() if known else ()):
            assert_near(state.past[-known:, b], own[-known:])


@shapes
def test_forward_of_a_fragment_equals_forward_of_each_step(layers, heads, sessions):
    net = _net(layers, heads, sessions)
    obs, stepped, answers = _noise(2 * T, B, F + P), net.zero_state(B), []
    for t in range(2 * T):
        *answer, stepped = net(obs[t : t + 1], stepped)
        answers.append(answer)
    outputs, values, state = net(obs, net.zero_state(B))
    assert_near(outputs, torch.cat([output for output, _ in answers]))
    assert_near(values, torch.cat([value for _, value in answers]))
    for one, other in zip(state, stepped, strict=True):
        assert_near(one, other)


@shapes
def test_gradients_within_a_fragment_equal_one_observation_at_a_time(layers, heads, sessions):
    net = _net(layers, heads, sessions)
    (rows, state), obs, (one, two) = _begun(net), _noise(T, B, F + P), (_noise(T, B, 3), _noise(T, B, seed=2))
    fused, plain = (
        gradients((outputs * one).mean() + (values * two).mean(), net)
        for outputs, values in (net(obs, state)[:2], _one_by_one(rows, obs))
    )
    for name, gradient in plain.items():
        assert_near(fused[name], gradient)
        assert heads or gradient.abs().max() > 1e-3, name


STARTS = {
    "none": [],
    "first row": [(0, 0), (0, 3)],
    "last row": [(T - 1, 1)],
    "all at once": [(4, b) for b in range(B)],
    "many": [(0, 0), (3, 0), (4, 0), (9, 0), (T - 1, 0), (1, 2), (7, 2), (0, 4), (7, 4), (T - 2, 4), (T - 1, 4)],
    "always": [(t, 1) for t in range(T)],
}


@pytest.mark.parametrize("places", STARTS.values(), ids=STARTS.keys())
@pytest.mark.parametrize(("layers", "heads", "sessions"), [(1, 0, 1), (2, 2, 5), (1, 4, 40)])
def test_unroll_equals_sequences_cut_where_episodes_begin(layers, heads, sessions, places):
    net = _net(layers, heads, sessions)
    state, market, weight = _begun(net)[1], _noise(T, B, F), _noise(T, B, 8, seed=2)
    starts = torch.zeros(T, B, dtype=torch.bool)
    for t, b in places:
        starts[t, b] = True
    columns = []
    for b in range(B):
        begins, parts = sorted({0, *(t for t, slot in places if slot == b)}), []
        for first, after in pairwise([*begins, T]):
            before = net.zero_state(1) if starts[first, b] else state.at(torch.tensor([b]))
            parts.append(net.recur(market[first:after, b : b + 1], before)[0])
        columns.append(torch.cat(parts))
    told, cut = net.unroll(market, state, starts), torch.cat(columns, 1)
    assert_near(told, cut)
    fused, plain = (gradients((each * weight).mean(), net) for each in (told, cut))
    for name, gradient in plain.items():
        assert_near(fused[name], gradient)


@shapes
def test_row_does_not_depend_on_the_rows_beside_it(layers, heads, sessions):
    net = _net(layers, heads, sessions)
    state, obs = _begun(net)[1], _noise(T, B, F + P)
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[5, 2] = starts[8, 2] = starts[0, 1] = True
    outputs, values, after = net(obs, state)
    told = net.unroll(obs[..., :F], state, starts)

    order = torch.tensor([3, 0, 4, 2, 1])
    again = net(obs[:, order], state.at(order))
    for one, other in zip(
        (outputs[:, order], values[:, order], *after.at(order)), (*again[:2], *again[2]), strict=True
    ):
        assert_near(one, other, 1e-6)
    assert_near(told[:, order], net.unroll(obs[:, order][..., :F], state.at(order), starts[:, order]), 1e-6)

    for alone in torch.arange(B)[:, None]:
        assert_near(outputs[:, alone], net(obs[:, alone], state.at(alone))[0], 1e-6)
        assert_near(told[:, alone], net.unroll(obs[:, alone][..., :F], state.at(alone), starts[:, alone]), 1e-6)

    others = torch.arange(B) != 2
    changed = torch.where(others[:, None], 5 * obs + 1, obs)
    began = torch.where(others, ~starts, starts)
    assert_near(outputs[:, 2], net(changed, state)[0][:, 2], 1e-6)
    assert_near(told[:, 2], net.unroll(changed[..., :F], state, began)[:, 2], 1e-6)
    assert not torch.allclose(outputs[:, 1], net(changed, state)[0][:, 1])


@shapes
def test_later_sessions_change_nothing_before_them(layers, heads, sessions):
    net = _net(layers, heads, sessions)
    state, obs = _begun(net)[1], _noise(T, B, F + P)
    changed = obs.clone()
    changed[7:] += 3
    outputs, others = net(obs, state)[0], net(changed, state)[0]
    assert_near(outputs[:7], others[:7], 1e-6)
    assert (outputs[7:] != others[7:]).any(-1).all()


class _Echo(nn.Module):
    """An LSTM that says what it hears, so that attention alone is left."""

    def forward(self, heard, state):
        return heard, state


@pytest.mark.parametrize("sessions", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("carried", [0, 9])
def test_attention_sees_its_sessions_and_no_other(sessions, carried):
    net = lively(
        SwingNet(8, ActionKind.DISCRETE, ModelConfig(hidden=8, attention_heads=2, attention_sessions=sessions))
    )
    net.lstm = _Echo()
    market = _noise(carried + T, 1, 8)

    def told(heard):
        state = net.zero_state(1)
        if carried:
            state = net.recur(heard[:carried], state)[1]
        return net.recur(heard[carried:], state)[0]

    with torch.no_grad():
        plain = told(market)
        for t in range(carried + T):
            changed = market.clone()
            changed[t] += 1
            moved = (told(changed) != plain).any(-1)[:, 0]
            seen = [t <= at < t + sessions for at in range(carried, carried + T)]
            assert moved.tolist() == seen
        for t in range(T):
            window = market[max(0, carried + t - sessions + 1) : carried + t + 1, 0]
            assert_near(plain[t, 0], window[-1] + attention(net, window))


def test_outputs_are_logits_and_scale_with_the_actor():
    net, obs = _net(), _noise(T, B, F + P)
    with torch.no_grad():
        outputs = net(obs, net.zero_state(B))[0]
        net.actor.weight *= 100
        net.actor.bias *= 100
        scaled = net(obs, net.zero_state(B))[0]
    assert_near(scaled, 100 * outputs)
    assert scaled.abs().max() > 50
    assert (scaled < 0).any()


@pytest.mark.parametrize("action", list(ActionKind))
def test_critic_dropout_touches_values_in_training_only(action):
    net, plain, obs = _net(critic_dropout=0.5, action=action), _net(action=action), _noise(T, B, F + P)
    torch.manual_seed(0)
    state = net.zero_state(B)
    wanted, valued, _ = plain(obs, state)
    for _ in range(3):
        outputs, values, _ = net.train()(obs, state)
        assert_near(outputs, wanted, 1e-6)
        assert not torch.allclose(values, valued, atol=1e-2)
    outputs, values, _ = net.eval()(obs, state)
    assert_near(outputs, wanted, 1e-6)
    assert_near(values, valued, 1e-6)


def _processor(monkeypatch, tmp_path, flags):
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nflags\t\t: fpu sse {flags}\n")
    monkeypatch.setattr(network, "Path", lambda _: told)


def test_bf16_without_the_instructions_warns_and_stays_float32(monkeypatch, tmp_path, caplog):
    _processor(monkeypatch, tmp_path, "avx512f")
    with caplog.at_level(logging.WARNING):
        net = _net(bf16=True)
    assert "no bfloat16 instructions" in caplog.text
    obs = _noise(T, B, F + P)
    assert torch.equal(net(obs, net.zero_state(B))[0], _net()(obs, net.zero_state(B))[0])


def test_bf16_not_asked_for_says_nothing(monkeypatch, tmp_path, caplog):
    _processor(monkeypatch, tmp_path, "avx512f")
    assert not _net().bf16
    assert not caplog.text


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_bf16_with_the_instructions_is_on_without_a_word(monkeypatch, tmp_path, caplog, flag):
    _processor(monkeypatch, tmp_path, flag)
    assert _net(bf16=True).bf16
    assert not caplog.text


class _Rounded(nn.Module):
    """An LSTM that answers in bfloat16 where it is allowed to, as those of processors with such instructions do."""

    def __init__(self, lstm):
        super().__init__()
        self.exact = lstm

    def forward(self, heard, state):
        allowed = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):
            told, (h, c) = self.exact(heard, state)
        return (told.bfloat16(), (h.bfloat16(), c.bfloat16())) if allowed else (told, (h, c))


@pytest.mark.parametrize("kind", ["native", "rounded"])
@pytest.mark.parametrize(("layers", "heads", "sessions"), [(1, 0, 1), (2, 2, 5)])
def test_bf16_agrees_with_float32_and_leaves_all_else_in_it(monkeypatch, tmp_path, kind, layers, heads, sessions):
    _processor(monkeypatch, tmp_path, "amx_bf16")
    net, exact = _net(layers, heads, sessions, bf16=True), _net(layers, heads, sessions)
    obs, state = _noise(T, B, F + P), _begun(exact)[1]
    if kind == "rounded":
        net.lstm = _Rounded(net.lstm)
    try:
        told, after = net.recur(obs[..., :F], state)
    except RuntimeError as error:
        assert kind == "native"
        pytest.skip(f"NOT TESTED: torch {torch.__version__} runs no LSTM in bfloat16 on this processor: {error}")
    plain, _ = exact.recur(obs[..., :F], state)
    assert {part.dtype for part in (told, *after[:3])} == {torch.float32}
    assert not torch.equal(told, plain), "bfloat16 was not used"
    for one, other in zip(net(obs, state)[:2], exact(obs, state)[:2], strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).detach().abs().max()) < 2e-2 * float(other.detach().abs().max())
    mine, theirs = (
        torch.cat([g.reshape(-1) for g in gradients(each(obs, state)[0].square().mean(), each).values()])
        for each in (net, exact)
    )
    assert mine.dtype == torch.float32
    assert float((mine - theirs).norm()) < 0.03 * float(theirs.norm())


def test_state_put_and_at_are_inverse_and_leave_the_first_alone():
    net = _net(2, 2, 5)
    state, zero, rows = _begun(net)[1], net.zero_state(2), torch.tensor([3, 1])
    kept = State(*(part.clone() for part in state))
    put = state.put(rows, zero)
    for mine, given, first, old in zip(put.at(rows), zero, state, kept, strict=True):
        assert torch.equal(mine, given)
        assert torch.equal(first, old)
    others = torch.tensor([0, 2, 4])
    for mine, old in zip(put.at(others), kept.at(others), strict=True):
        assert torch.equal(mine, old)


def test_weights_of_another_size_are_refused_and_change_nothing():
    weights = Joined(_net().parameters())
    vector = weights.vector()
    for wrong in (vector[:-1], np.append(vector, np.float32(0)), vector[None], vector[:0]):
        with pytest.raises(ValueError, match=f"for a network of {len(vector)}"):
            weights.load(wrong + 1)
    assert np.array_equal(weights.vector(), vector)


def test_weights_moved_away_from_their_vector_are_refused():
    net = _net()
    weights = Joined(net.parameters())
    net.load_state_dict(_net().state_dict())  # in place
    assert np.array_equal(weights.vector(), flat(list(net.parameters())))
    net.double()
    with pytest.raises(RuntimeError, match="moved away"):
        weights.vector()


@shapes
def test_weights_as_a_vector_come_back_equal_and_share_no_memory(layers, heads, sessions):
    net, other = _net(layers, heads, sessions), lively(_net(layers, heads, sessions), seed=5)
    apart, vector = flat(list(net.parameters())), Joined(net.parameters()).vector()
    assert np.array_equal(vector, apart)
    Joined(other.parameters()).load(vector)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    kept = vector.copy()
    lively(other, seed=6)
    assert np.array_equal(vector, kept)
    assert np.array_equal(flat(list(net.parameters())), kept)


@pytest.mark.parametrize("action", list(ActionKind))
@shapes
def test_policy_arrays_make_the_same_network_and_the_same_numpy_policy(layers, heads, sessions, action):
    net, obs = _net(layers, heads, sessions, action), _noise(T, B, F + P)
    arrays, spans = policy_arrays(net), (heads, sessions if heads else 0)
    again = net_of(arrays, action, *spans)
    outputs, _, _ = net(obs, net.zero_state(B))
    assert_near(again(obs, again.zero_state(B))[0], outputs, 1e-6)
    for name, array in policy_arrays(again).items():
        np.testing.assert_array_equal(array, arrays[name])
    assert policy_arrays(again).keys() == arrays.keys()
    assert not [name for name in arrays if "critic" in name]
    policy = LstmPolicy("p", T, arrays, Scaler(median=(0.0,) * F, spread=(1.0,) * F, clip=100.0), action, *spans)
    assert_near(torch.from_numpy(policy.outputs(obs[..., :F].numpy(), obs[-1, :, F:].numpy())), outputs[-1])
