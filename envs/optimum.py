"""The best average reward of each world, exactly, and the policy that earns it.

With a charge of c for each unit traded and positions within ±1 (prop, hmm, delay), let x_t be the expected next
return given all that was seen. The value of bringing position p into t is p · d_t + something without p: Bellman's
equation keeps that form, with w_t what one more unit is worth once it is held at t,

    w_t = x_t + E[d_{t+1}]        d_t = clip(w_t, -c, c)        best average reward = E[max(abs(w_t) - c, 0)]

since a unit that is missed can be bought for c, and one too many sold for c. So the best policy goes to the sign of
w_t where abs(w_t) > c and keeps its position elsewhere, a band of no trade. It goes all the way, hence discrete and
continuous positions have the same optimum. Any other band is judged alike: d_t is ± c outside of it and w_t inside.
Source: de Lataillade, Deremble, Potters and Bouchaud, "Optimal Trading with Linear Costs", Journal of Investment
Strategies 1(3), 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import ConfigError
from data_pipeline.sources.worlds import DelayWorld, GpWorld, HmmWorld, NoiseWorld, PropWorld, World
from envs.contract import Bools, Floats, Floats32
from envs.worlds import WorldEnvConfig

POINTS = 1000
"""Points on the positive half of the states of prop and hmm; their optima are then good to 1e-5 of themselves."""
TAIL = 6.0
"""Deviations after which those states end."""
LONGEST_WINDOW = 17
"""Coins that a table of what the next moves are worth may span: 2^17 entries."""


class Rule(Protocol):
    """A policy as a pure function of what is seen, for B slots at once; all it knows is 0 at the start."""

    @property
    def memory(self) -> int:
        """M, the numbers it carries from step to step beside its position."""

    def decide(self, cue: Floats, position: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """Returns the position of t and the memory to carry on.

        Args:
            cue: Cue of t, `[B]`.
            position: Position of t - 1, `[B]`.
            memory: What it carried, `[B, M]`.
        """


@dataclass(frozen=True)
class Band:
    """Goes to the sign of the expected return where that is beyond ± `width`, and keeps its position elsewhere."""

    width: float
    memory = 0

    def decide(self, cue: Floats, position: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """See `Rule.decide`; the cue is the expected return."""
        return _beyond(cue, self.width, position), memory


@dataclass(frozen=True)
class BeliefBand:
    """A band on the return that a Bayes filter expects; the memory is the log odds of the good regime."""

    width: float
    m: float
    h: float
    noise: float
    memory = 1

    def decide(self, cue: Floats, position: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """See `Rule.decide`; the cue is the last return."""
        log_odds = _log_odds_after_flip(memory[:, 0], self.h) + 2 * self.m * cue / self.noise**2
        expected = self.m * (1 - 2 * self.h) * np.tanh(log_odds / 2)
        return _beyond(expected, self.width, position), log_odds[:, None]


@dataclass(frozen=True)
class Toward:
    """Closes the share `rate` of the distance to `aim` times the signal."""

    rate: float
    aim: float
    memory = 0

    def decide(self, cue: Floats, position: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """See `Rule.decide`; the cue is the signal."""
        return position + self.rate * (self.aim * cue - position), memory


@dataclass(frozen=True)
class Recall:
    """Remembers `lag` coins and takes the side that the oldest, or `worth`, gives; the memory is oldest first.

    Attributes:
        lag: Coins that it remembers beside the one it sees.
        charge: Where `worth` is between ± this, it keeps its position.
        worth: Of a unit of position for each window of coins, `[2^(lag + 1)]`, in the order of binary numbers whose
            first digit is the oldest coin. None: it follows the oldest coin.
    """

    lag: int
    charge: float = 0.0
    worth: Floats | None = None

    @property
    def memory(self) -> int:
        """See `Rule.memory`."""
        return self.lag

    def decide(self, cue: Floats, position: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """See `Rule.decide`; the cue is a coin. A coin of before the start is 0 and moves nothing."""
        window = np.column_stack([memory, cue])
        oldest = window[:, 0]
        if self.worth is None:
            return _beyond(oldest, 0.0, position), window[:, 1:]
        number = (window > 0) @ (1 << np.arange(self.lag, -1, -1))
        worth = np.where(oldest == 0, 0.0, self.worth[number])
        return _beyond(worth, self.charge, position), window[:, 1:]


class Optimum(NamedTuple):
    """What the best policy earns, how it decides, and what lesser ones earn.

    Attributes:
        average_reward: Per step in the long run, `cost_scale` and `reward_scale` 1.
        rule: The best policy.
        lesser: The same average for policies that lack something, each the best of its kind: `myopic` looks one step
            ahead, `position_blind` does not know its position, `memoryless` knows only the cue of now. The first two
            have the filter in hmm.
    """

    average_reward: float
    rule: Rule
    lesser: Mapping[str, float]


def optimum(world: World) -> Optimum:
    """Returns the optimum of a world; takes a fraction of a second.

    Raises:
        ConfigError: A process too slow for the grid, or a delayed coin with a charge that pays to skip moves and
            too many coins to tabulate.
    """
    match world:
        case PropWorld():
            best, width, lesser = _switching(_signal_states(world), world.c)
            return Optimum(best, Band(width), lesser)
        case HmmWorld():
            best, width, lesser = _switching(_belief_states(world), world.c)
            rule = BeliefBand(width, world.m, world.h, world.noise)
            return Optimum(best, rule, {**lesser, "memoryless": _memoryless_hmm(world)})
        case GpWorld():
            return _gp(world)
        case DelayWorld():
            return _delay(world)
        case NoiseWorld():
            return Optimum(0.0, Band(math.inf), {})


class OptimalPolicy:
    """Plays B slots of an environment with the best policy of its world, whether positions are shown or not."""

    def __init__(self, config: WorldEnvConfig, num_envs: int = 1) -> None:
        """Solves the world.

        Args:
            config: Settings of the environment.
            num_envs: B.
        """
        self.config, self.rule = config, optimum(config.world).rule
        self._position = np.zeros(num_envs)
        self._memory = np.zeros((num_envs, self.rule.memory))

    def reset(self, slots: Bools | None = None) -> None:
        """Forgets what the slots of a mask `[B]` have seen and hold; None: all slots."""
        chosen = slice(None) if slots is None else slots
        self._position[chosen] = 0.0
        self._memory[chosen] = 0.0

    def act(self, observations: Floats32) -> npt.NDArray[Any]:
        """Returns the action of each slot for observations `[B, D]`: discrete `[B]`, continuous `[B, 1]`."""
        cue = observations[:, 0].astype(np.float64) * self.config.world.cue_deviation
        self._position, self._memory = self.rule.decide(cue, self._position, self._memory)
        return self.config.actions(self._position)


def _beyond(value: Floats, width: float, position: Floats) -> Floats:
    """Returns the sign of `value` where it is beyond ± `width`, else the position, `[B]`."""
    result: Floats = np.where(np.abs(value) > width, np.sign(value), position)
    return result


def _log_odds_after_flip(log_odds: Floats, h: float) -> Floats:
    """Returns the log odds of a regime after it may have flipped with chance h, same shape."""
    result: Floats = 2 * np.arctanh((1 - 2 * h) * np.tanh(log_odds / 2))
    return result


class _States(NamedTuple):
    """A stationary process that is as likely as its mirror image, on the n states of its positive half.

    Attributes:
        signal: Expected next return, increasing, `[n]`; in the mirror image of a state it is the negative.
        same: Chance to go from state to state, `[n, n]`.
        mirrored: Chance to go from a state to the mirror image of a state, `[n, n]`.
        weight: Stationary chance of a state or its mirror image, `[n]`.
    """

    signal: Floats
    same: Floats
    mirrored: Floats
    weight: Floats


def _states(place: Floats, signal: Floats, density: Callable[[Floats, Floats], Floats]) -> _States:
    """Returns the chain on evenly spaced places that a smooth transition density, up to a factor, stands for."""
    same, mirrored = density(place[:, None], place), density(place[:, None], -place)
    total = (same + mirrored).sum(axis=1, keepdims=True)
    same, mirrored = same / total, mirrored / total
    # weight · (1 - chain) = 0 and the sum of weight is 1, in one system
    weight = np.linalg.solve((np.eye(len(place)) - same - mirrored + 1).T, np.ones(len(place)))
    return _States(signal, same, mirrored, weight)


def _places(reach: float, edge: float, narrowest: float, world: World) -> Floats:
    """Returns the middles of `POINTS` cells that cover [0, reach], one of which ends at `edge`.

    Raises:
        ConfigError: Cells are wider than `narrowest`.
    """
    width = reach / POINTS
    if width < edge < reach:
        width = edge / (edge // width)
    if width > narrowest:
        raise ConfigError(
            f"world {world!r}: it moves by {narrowest:.2g} of {reach:.2g}, too little for {POINTS} points; "
            "choose parameters that make it faster"
        )
    return (np.arange(POINTS, dtype=np.float64) + 0.5) * width


def _signal_states(world: PropWorld) -> _States:
    """Returns the AR(1) signal as states; a cell ends where the myopic policy begins to trade."""
    shock = world.sd * math.sqrt(1 - world.q**2)
    signal = _places(TAIL * world.sd, world.c, shock, world)
    return _states(signal, signal, lambda now, then: np.exp(-(((then - world.q * now) / shock) ** 2) / 2))


def _belief_states(world: HmmWorld) -> _States:
    """Returns the filter's log odds as states, mirrored where flips are the rule, so that the signal increases.

    A cell ends where the myopic policy begins to trade.
    """
    best = world.m * abs(1 - 2 * world.h)
    edge = 2 * math.atanh(world.c / best) if world.c < best else math.inf
    spread = 2 * world.m / world.noise  # of the log likelihood ratio of one return; its mean is ± spread²/2
    farthest = 2 * math.atanh(abs(1 - 2 * world.h))
    log_odds = _places(farthest + spread**2 / 2 + TAIL * spread, edge, min(spread, 1.0), world)

    def density(now: Floats, then: Floats) -> Floats:
        good = (1 + (1 - 2 * world.h) * np.tanh(now / 2)) / 2
        news = (then - _log_odds_after_flip(now, world.h)) / spread
        return good * np.exp(-((news - spread / 2) ** 2) / 2) + (1 - good) * np.exp(-((news + spread / 2) ** 2) / 2)

    return _states(log_odds, best * np.tanh(log_odds / 2), density)


def _switching(states: _States, c: float) -> tuple[float, float, dict[str, float]]:
    """Returns the best average reward, the width of its band, and what lesser policies earn.

    Policy iteration: solve for the worth under a band, then let the band be where the worth is below the charge. The
    first band is that of the myopic policy.
    """
    inside = states.signal < c
    worth = _worth(states, c, inside)
    myopic = _average(states, c, inside, worth)
    while not np.array_equal(inside, worth < c):
        inside = worth < c
        worth = _worth(states, c, inside)
    width = np.interp(c, np.append(0.0, worth), np.append(0.0, states.signal), right=math.inf)
    lesser = {"myopic": myopic, "position_blind": _position_blind(states, c)}
    return _average(states, c, inside, worth), float(width), lesser


def _worth(states: _States, c: float, inside: Bools) -> Floats:
    """Returns w, `[n]`, under the policy that keeps its position in the states `inside` and is long in the others."""
    to = states.same - states.mirrored  # d of a mirror image is the negative
    d = np.where(inside, 0.0, c)
    own = to[np.ix_(inside, inside)]
    d[inside] = np.linalg.solve(np.eye(len(own)) - own, states.signal[inside] + to[inside] @ d)
    return states.signal + to @ d


def _average(states: _States, c: float, inside: Bools, worth: Floats) -> float:
    return float(states.weight @ np.where(inside, 0.0, worth - c))


def _position_blind(states: _States, c: float) -> float:
    """Returns the best average reward of the policies sign(signal) beyond a threshold, else 0."""
    # positions of two steps, each 1, 0 or -1 on a line of mirror images: E abs(p - p') = 2 E abs(p) - 2 P(p = p' ≠ 0)
    stays = (states.weight[:, None] * states.same)[::-1, ::-1].cumsum(axis=0).cumsum(axis=1).diagonal()
    holds = states.weight[::-1].cumsum()
    earns = (states.weight * states.signal)[::-1].cumsum()
    return max(0.0, float((earns - 2 * c * (holds - stays)).max()))


def _memoryless_hmm(world: HmmWorld) -> float:
    """Returns the best average reward of the policies sign(last return) beyond a threshold, else 0."""
    thresholds = np.linspace(0.0, world.m + TAIL * world.noise, 400)
    normal = NormalDist(0.0, world.noise)
    right = np.array([1 - normal.cdf(k - world.m) for k in thresholds])  # chance of the regime's own side
    wrong = np.array([normal.cdf(-k - world.m) for k in thresholds])
    # given their regimes, the positions of two steps are independent
    both = (1 - world.h) * (right**2 + wrong**2) + world.h * 2 * right * wrong
    earned = world.m * (1 - 2 * world.h) * (right - wrong)
    return max(0.0, float((np.abs(earned) - 2 * world.c * (right + wrong - both)).max()))


def _gp(world: GpWorld) -> Optimum:
    """Returns the closed form of an average reward without discount.

    The relative value of the last position p and the signal f is a p f / (1 + a phi) - a p²/2 + terms without p, where
    a² + a = lam. Source: Gârleanu and Pedersen, "Dynamic Trading with Predictable Returns and Transaction Costs",
    Journal of Finance 68(6), 2013, with the risk aversion and the variance that scale risk and charge at 1.
    """
    a = (math.sqrt(1 + 4 * world.lam) - 1) / 2
    rule = Toward(rate=1 / (1 + a), aim=1 / (1 + a * world.phi))
    lesser = {
        "myopic": _toward_average(world, Toward(rate=1 / (1 + world.lam), aim=1.0)),
        "position_blind": world.sd_f**2 / (2 + 4 * world.lam * world.phi),  # at position f / (1 + 2 lam phi)
    }
    return Optimum((rule.aim * world.sd_f) ** 2 / 2, rule, lesser)


def _toward_average(world: GpWorld, rule: Toward) -> float:
    """Returns the average reward of p_t = keep · p_{t-1} + step · f_t, from its stationary moments."""
    keep, step, q, variance = 1 - rule.rate, rule.rate * rule.aim, 1 - world.phi, world.sd_f**2
    with_signal = step * variance / (1 - keep * q)
    square = step * (step * variance + 2 * keep * q * with_signal) / (1 - keep**2)
    with_last = keep * square + step * q * with_signal
    return with_signal - square / 2 - world.lam * (square - with_last)


def _delay(world: DelayWorld) -> Optimum:
    """Returns the optimum in closed form where it follows every coin, else by the worth of each window of coins.

    With 2c ≤ b, abs(w_t) ≥ b - c ≥ c whatever coins come next, so every coin is followed, at a charge of c on average.
    """
    lesser = {"memoryless": 0.0} if world.lag else {}
    if 2 * world.c <= world.b:
        return Optimum(world.b - world.c, Recall(world.lag), lesser)
    if world.lag >= LONGEST_WINDOW:
        raise ConfigError(
            f"world {world!r}: with c above b/2 the best policy skips moves, and a lag of at most "
            f"{LONGEST_WINDOW - 1} can be tabulated; choose a smaller lag or charge"
        )
    half = 1 << world.lag
    driven = world.b * np.repeat([-1.0, 1.0], half)
    worth, before = driven, np.zeros(2 * half)
    while np.abs(worth - before).max() > 1e-12 * world.b:
        d = np.clip(worth, -world.c, world.c)
        # the oldest coin falls out and a new one, which may be either, comes in
        worth, before = driven + np.tile(d.reshape(half, 2).mean(axis=1), 2), worth
    return Optimum(float(np.maximum(np.abs(worth) - world.c, 0).mean()), Recall(world.lag, world.c, worth), lesser)
