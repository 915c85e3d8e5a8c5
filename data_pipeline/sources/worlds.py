"""Seeded synthetic markets whose best policy is known: they prove that learning works.

At session t the agent sees the cue of t and chooses a position p_t (gp: any number, else within ±1). It earns
p_t · r_{t+1} less what the world charges for p_t and for the move from p_{t-1}; p_{-1} is 0. u is standard normal.

| world | hidden | r_{t+1} | cue at t | charge |
|---|---|---|---|---|
| prop | AR(1) signal s, coefficient q, deviation sd | s_t + noise · u | s_t | c · abs(p_t - p_{t-1}) |
| hmm | regime z = ±1, flips with chance h | m · z_{t+1} + noise · u | r_t | c · abs(p_t - p_{t-1}) |
| gp | AR(1) signal f, coefficient 1 - phi, deviation sd_f | f_t + noise · u | f_t | (p_t² + lam (p_t - p_{t-1})²) / 2 |
| delay | fair coins e = ±1 | b · e_{t-lag} + noise · u | e_t | c · abs(p_t - p_{t-1}) |
| noise | nothing | noise · u | a standard normal of its own | c · abs(p_t - p_{t-1}) |

Hidden processes start in their stationary state. Noise makes learning harder and leaves the optimum alone, except
in hmm, where it is what hides the regime.

As a market, one unit of r is `return_scale` of the price: the bar of t + 1 opens at the close of t and closes
return_scale · r_{t+1} higher, so a fill at the next open earns r_{t+1} whole. High and low are the higher and the
lower of open and close. The volume of t holds the cue of t, which is log(volume / CUE_BASE_SHARES). There are no
splits and no dividends. With the default scale a reward in percent is one of the world, but for the curvature of
the logarithm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from data_pipeline.config import Config, canonical_json
from data_pipeline.errors import ConfigError
from data_pipeline.schema import Timeframe, checked, selected
from data_pipeline.sessions import next_session

CUE_BASE_SHARES = 1e8
FIRST_PRICE_USD = 100.0

Floats = npt.NDArray[np.float64]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(gt=0, lt=1)]


class Paths(NamedTuple):
    """What a world does over T sessions, a path per symbol.

    Attributes:
        cue: What is seen at t, `[T, N]`.
        returns: r_0 .. r_T, `[T + 1, N]`; a position of t earns `returns[t + 1]`.
        expected: E[r_{t+1}] given all up to t, hidden states included, `[T, N]`. For a policy that knows no future
            p_t · expected_t has the mean of p_t · r_{t+1} and a fraction of its variance, so it is what to score by.
    """

    cue: Floats
    returns: Floats
    expected: Floats


class Draws(NamedTuple):
    """The two streams of random numbers of one path; more sessions draw on, and change nothing before."""

    state: np.random.Generator
    noise: np.random.Generator


def draws(seed: int, number: int) -> Draws:
    """Returns the streams of the path of this seed and number, at their beginning."""
    streams = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(2)
    return Draws(*(np.random.default_rng(stream) for stream in streams))


class _World(Config, ABC):
    """What every world offers."""

    @property
    def cue_deviation(self) -> float:
        """Stationary deviation of the cue, whose mean is 0."""
        return 1.0

    @abstractmethod
    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """Returns N paths of T sessions, one from each of `streams`, which it draws on."""

    @abstractmethod
    def move_charge(self, position_t: Floats, position_tm1: Floats) -> Floats:
        """Returns what the world charges for the positions of t and the moves to them, `[...]` all."""

    def charge(self, positions: Floats) -> Floats:
        """Returns what the world charges for `positions` and the moves to them, `[T, ...]` both."""
        return self.move_charge(positions, np.concatenate([np.zeros_like(positions[:1]), positions[:-1]]))


class _ProportionalWorld(_World):
    """A world with a charge proportional to the move."""

    c: NotNegative = 0.5
    """Charge for one unit of position traded."""
    noise: NotNegative = 0.5
    """Deviation of the noise in a return."""

    def move_charge(self, position_t: Floats, position_tm1: Floats) -> Floats:
        """See `_World.move_charge`."""
        return self.c * np.abs(position_t - position_tm1)


class PropWorld(_ProportionalWorld):
    """AR(1) signal, proportional charge: the best policy holds through a band of no trade."""

    name: Literal["prop"] = "prop"
    """Which world."""
    q: Chance = 0.95
    """Coefficient of the signal from one session to the next."""
    sd: Positive = 0.2
    """Stationary deviation of the signal."""

    @property
    def cue_deviation(self) -> float:
        """See `_World.cue_deviation`."""
        return self.sd

    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """See `_World.paths`."""
        return _signal_paths(self.q, self.sd, self.noise, sessions, streams)


class HmmWorld(_ProportionalWorld):
    """Hidden regime, of which only returns are seen: the best policy is a Bayes filter, so it needs memory."""

    name: Literal["hmm"] = "hmm"
    """Which world."""
    c: NotNegative = 0.2
    """Charge for one unit of position traded."""
    noise: Positive = 1.0
    """Deviation of the noise in a return."""
    m: Positive = 0.3
    """Mean return of the good regime; that of the bad one is its negative."""
    h: Chance = 0.02
    """Chance that the regime flips before a session."""

    @property
    def cue_deviation(self) -> float:
        """See `_World.cue_deviation`."""
        return math.hypot(self.m, self.noise)

    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """See `_World.paths`."""
        state, noise = zip(*streams, strict=True)
        chance = _uniforms(state, sessions + 1)
        chance[0] *= 2 * self.h  # the first draw is that of a fair coin
        regime = np.where(np.cumsum(chance < self.h, axis=0) % 2, -1.0, 1.0)
        returns = self.m * regime + self.noise * _normals(noise, sessions + 1)
        return Paths(returns[:-1], returns, self.m * (1 - 2 * self.h) * regime[:-1])


class GpWorld(_World):
    """Gârleanu and Pedersen's AR(1) signal with quadratic risk and charge: the best policy trades towards an aim."""

    name: Literal["gp"] = "gp"
    """Which world."""
    phi: Chance = 0.05
    """Share of the signal that is gone by the next session."""
    sd_f: Positive = 0.3
    """Stationary deviation of the signal."""
    lam: NotNegative = 50.0
    """Charge for the square of a move, over that for the square of a position."""
    noise: NotNegative = 1.0
    """Deviation of the noise in a return."""

    @property
    def cue_deviation(self) -> float:
        """See `_World.cue_deviation`."""
        return self.sd_f

    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """See `_World.paths`."""
        return _signal_paths(1 - self.phi, self.sd_f, self.noise, sessions, streams)

    def move_charge(self, position_t: Floats, position_tm1: Floats) -> Floats:
        """See `_World.move_charge`."""
        return (position_t**2 + self.lam * (position_t - position_tm1) ** 2) / 2


class DelayWorld(_ProportionalWorld):
    """A coin seen `lag` sessions ago drives the return: whoever does not remember it earns exactly nothing."""

    name: Literal["delay"] = "delay"
    """Which world."""
    c: NotNegative = 0.0
    """Charge for one unit of position traded."""
    lag: Annotated[int, Field(ge=0)] = 5
    """Sessions between a coin and the decision that it should guide."""
    b: Positive = 0.5
    """Size of the return that a coin drives."""

    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """See `_World.paths`."""
        state, noise = zip(*streams, strict=True)
        chance = _uniforms(state, sessions + 1 + self.lag)  # of -1 - lag and later
        coins = np.where(chance < 0.5, -1.0, 1.0)
        driven = self.b * coins[: sessions + 1]
        returns = driven + self.noise * _normals(noise, sessions + 1)
        return Paths(coins[1 + self.lag :], returns, driven[1:])


class NoiseWorld(_ProportionalWorld):
    """Returns that nothing predicts: the judge must reject whatever is learnt here."""

    name: Literal["noise"] = "noise"
    """Which world."""
    c: NotNegative = 0.0
    """Charge for one unit of position traded."""
    noise: Positive = 1.0
    """Deviation of a return."""

    def paths(self, sessions: int, streams: Sequence[Draws]) -> Paths:
        """See `_World.paths`."""
        state, noise = zip(*streams, strict=True)
        returns = self.noise * _normals(noise, sessions + 1)
        return Paths(_normals(state, sessions), returns, np.zeros((sessions, len(streams))))


World = Annotated[PropWorld | HmmWorld | GpWorld | DelayWorld | NoiseWorld, Field(discriminator="name")]


class WorldConfig(Config):
    """Which world, and how much of it."""

    world: World = PropWorld()
    """Name and parameters, such as {name: prop, q: 0.8, sd: 0.3}."""
    symbols: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Number of symbols, each an independent path."""
    sessions: Annotated[int, Field(ge=1)] = 5000
    """Number of sessions."""
    first_session: date = date(2000, 1, 3)
    """First session, or a day before it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed; the path of a symbol depends on it and on the symbol's number, not on how many symbols there are."""
    return_scale: Positive = 0.01
    """Price return, as a fraction, of a return of 1 in the world."""


def paths(config: WorldConfig) -> Paths:
    """Returns the paths of all symbols: equal settings, equal bytes."""
    return config.world.paths(config.sessions, [draws(config.seed, number) for number in range(config.symbols)])


def expected_rewards(world: World, positions: Floats, seen: Paths) -> Floats:
    """Returns the reward that each step of `positions` may expect, charge included, `[T, N]` both."""
    return positions * seen.expected - world.charge(positions)


class WorldBars:
    """A world as a source of daily bars of the symbols PROP0000, PROP0001 and so on. See the module."""

    def __init__(self, config: WorldConfig | None = None, exchange: str = "XNYS") -> None:
        """Names the world; nothing is drawn yet.

        Args:
            config: The world; None: the defaults.
            exchange: Whose sessions the bars stand on.
        """
        self.config, self.exchange = config or WorldConfig(), exchange

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """See `BarSource.fetch`.

        Raises:
            ConfigError: The calendar has too few sessions, or the scale breaks the prices.
        """
        name = self.config.world.name
        if timeframe != "1Day":
            raise ConfigError(f"world {name!r} has daily bars only, not {timeframe}; ask for 1Day")
        return selected(checked(self._bars(), f"world {name}"), symbols, start, end, f"world {name}")

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`; the settings are all it takes to draw the bars again."""
        return {
            "source": "world",
            "feed": self.config.world.name,
            "adjustment": "none needed: no splits, no dividends",
            "version": "1",
            "settings": canonical_json(self.config.tree()).decode(),
        }

    def _bars(self) -> pl.DataFrame:
        seen = paths(self.config)
        growth = 1 + self.config.return_scale * seen.returns[:-1]
        close = FIRST_PRICE_USD * np.cumprod(growth, axis=0)
        if growth.min() <= 0 or not np.isfinite(close).all() or close.min() < 1e-6:
            raise ConfigError(
                f"return_scale {self.config.return_scale}: prices of world {self.config.world.name} do not stay "
                f"above zero and finite over {self.config.sessions} sessions; make it smaller"
            )
        before = np.vstack([np.full_like(close[:1], FIRST_PRICE_USD), close[:-1]])
        name = self.config.world.name.upper()
        columns = {
            "open": before,
            "high": np.maximum(before, close),
            "low": np.minimum(before, close),
            "close": close,
            "volume": CUE_BASE_SHARES * np.exp(seen.cue),
        }
        return pl.DataFrame(
            {
                "symbol": np.repeat([f"{name}{number:04d}" for number in range(self.config.symbols)], len(close)),
                "session": self._sessions() * self.config.symbols,
                **{column: values.ravel(order="F") for column, values in columns.items()},
            }
        )

    def _sessions(self) -> list[date]:
        config = self.config
        try:
            days = accumulate(
                range(config.sessions),
                lambda day, _: next_session(day, self.exchange),
                initial=config.first_session - timedelta(1),
            )
            return list(days)[1:]
        except ConfigError as error:
            raise ConfigError(
                f"{config.sessions} sessions from {config.first_session}: {error}, or set fewer sessions"
            ) from error


def _signal_paths(coefficient: float, deviation: float, noise: float, sessions: int, streams: Sequence[Draws]) -> Paths:
    """Returns the paths of a world whose next return is its AR(1) signal plus noise."""
    states, noises = zip(*streams, strict=True)
    # signal[k] is that of k - 1: what was seen before the first session drives its return
    signal = deviation * _normals(states, sessions + 1)
    signal[1:] *= np.sqrt(1 - coefficient**2)
    for k in range(1, len(signal)):
        signal[k] += coefficient * signal[k - 1]
    returns = signal + noise * _normals(noises, sessions + 1)
    return Paths(signal[1:], returns, signal[1:])


def _normals(streams: Iterable[np.random.Generator], count: int) -> Floats:
    """Returns standard normals, `[count, N]`, a column from each stream."""
    return np.stack([stream.standard_normal(count) for stream in streams], axis=1)


def _uniforms(streams: Iterable[np.random.Generator], count: int) -> Floats:
    """Returns numbers from [0, 1), `[count, N]`, a column from each stream."""
    return np.stack([stream.random(count) for stream in streams], axis=1)
