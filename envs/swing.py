"""Gymnasium shells around the pure step: `swing_rl/Swing-v0`, scalar and natively vectorised.

Description:
    One slot trades one symbol with its own account. One policy is shared by all slots and symbols.

Observation space: `Box(-5, 5, (F + P,), float32)`, the scaled market features of session t, then
    | position      | weight over sleeve budget, clipped to ± 5           |
    | sessions_held | sessions in the present position, in units of 20    |

Action space: `Discrete(3)` (short, cash, long) or `Box(-1, 1, ())` target position.

Rewards: `reward_scale` × log return of equity from the close of t to the close of t+1, costs included.

Starting state: a random symbol and session of the span, all cash.

Episode end: terminated when equity falls below `ruin_fraction` of the start; truncated after
    `episode_sessions` decisions (the value goes on, so it must be bootstrapped).

Autoreset of the vector form: NEXT_STEP. The step after an episode's end ignores that slot's action,
    resets it, and answers reward 0.

Slot i of a vector environment seeded with s behaves as a scalar environment seeded with s + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import FoldError
from envs.contract import (
    PORTFOLIO_FEATURES,
    ActionKind,
    Bools,
    Floats,
    Floats32,
    portfolio_state,
    positions_of,
)
from envs.costs import Costs
from envs.limits import Limits, sleeve_budget
from envs.market import Market
from envs.portfolio import Book, opening_book, step
from envs.rewards import log_return

ENV_ID = "swing_rl/Swing-v0"
OBSERVATION_BOUND = 5.0


class EnvConfig(Config):
    """What an episode is and what the account may do."""

    episode_sessions: Annotated[int, Field(ge=1)] = 128
    """Decisions in an episode."""
    action: ActionKind = ActionKind.DISCRETE
    """discrete {short, cash, long} or continuous [-1, 1]."""
    initial_cash_usd: Annotated[float, Field(gt=0)] = 100_000.0
    """Cash of each account at the start."""
    ruin_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The episode terminates when equity falls below this share of the initial cash."""
    reward_scale: Annotated[float, Field(gt=0)] = 100.0
    """Rewards are log returns times this: 100 makes one reward point one percent."""
    limits: Limits = Limits()
    """Allocation and limits, the same in training, backtest and trading."""
    costs: Costs = Costs()
    """The cost model."""


class _Slots:
    """State and transitions of B slots; the shells below only translate to Gymnasium's two interfaces."""

    def __init__(self, count: int, market: Market, span: tuple[int, int], config: EnvConfig) -> None:
        self.market, self.config, self.count = market, config, count
        self.starts = market.episode_starts(*span, config.episode_sessions)
        if not len(self.starts):
            raise FoldError(
                f"no symbol is complete for {config.episode_sessions} sessions between rows {span[0]} and {span[1]}; "
                "shorten env.episode_sessions or widen the fold"
            )
        self.t = np.zeros((count, 1), np.int64)
        self.n = np.zeros((count, 1), np.int64)
        self.age = np.zeros(count, np.int64)
        self.book: Book = opening_book(np.zeros(count), np.zeros((count, 1)))
        self.rng: list[np.random.Generator] = []

    def seed(self, seeds: Sequence[int | None]) -> None:
        self.rng = [np.random.default_rng(seed) for seed in seeds]

    def reset(self, slots: npt.NDArray[np.int64]) -> None:
        draws = [self.rng[slot].integers(len(self.starts)) for slot in slots]
        self.t[slots, 0], self.n[slots, 0] = self.starts[draws].T
        self.age[slots] = 0
        cash = np.full(len(slots), self.config.initial_cash_usd)
        fresh = opening_book(cash, self.market.close(self.t[slots], self.n[slots]))
        for now, new in zip(self.book, fresh, strict=True):
            now[slots] = new

    def step(self, positions: Floats) -> tuple[Floats, Bools, Bools]:
        """Returns reward, terminated, truncated, `[B]` each."""
        config = self.config
        before = self.book.equity
        bars = self.market.bars(self.t, self.n)
        self.book, _ = step(self.book, positions[:, None], bars, config.limits, config.costs)
        self.t = self.t + 1
        self.age = self.age + 1
        equity = self.book.equity
        terminated = equity < config.ruin_fraction * config.initial_cash_usd
        truncated = (self.age >= config.episode_sessions) & ~terminated
        return config.reward_scale * log_return(equity, before), terminated, truncated

    def observe(self) -> Floats32:
        """Returns observations `[B, F + P]`."""
        budget = sleeve_budget(np.ones((self.count, 1), np.bool_), self.config.limits)[:, None]
        state = portfolio_state(self.book.weights, budget, self.book.sessions_held)[:, 0]
        bounded = np.clip(state, -OBSERVATION_BOUND, OBSERVATION_BOUND)
        return np.concatenate([self.market.features[self.t[:, 0], self.n[:, 0]], bounded], axis=1)

    def info(self, slot: int) -> dict[str, Any]:
        panel = self.market.panel
        return {
            "symbol": panel.symbols[self.n[slot, 0]],
            "session": str(panel.sessions[self.t[slot, 0]]),
            "equity_usd": float(self.book.equity[slot]),
        }


def _market(panel: str | Market, scaler: dict[str, Any] | None) -> Market:
    if isinstance(panel, Market):
        return panel
    return Market.open(panel, scaler or {})


def _spaces(market: Market, config: EnvConfig) -> tuple[gym.spaces.Box, gym.Space[Any]]:
    width = market.features.shape[-1] + len(PORTFOLIO_FEATURES)
    observation = gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (width,), np.float32)
    if config.action is ActionKind.DISCRETE:
        return observation, gym.spaces.Discrete(3)
    return observation, gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


class SwingEnv(gym.Env[Floats32, Any]):
    """One slot. See the module."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        panel: str | Market,
        span: tuple[int, int],
        scaler: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Opens the market.

        Args:
            panel: Folder of a saved panel, or an open market.
            span: First row and the row after the last that the episode may touch.
            scaler: `Scaler` as a mapping; needed with a folder.
            settings: `EnvConfig` as a mapping.
        """
        self.config = EnvConfig.of(settings or {}, "env")
        self.slots = _Slots(1, _market(panel, scaler), span, self.config)
        self.observation_space, self.action_space = _spaces(self.slots.market, self.config)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode at a random symbol and session."""
        super().reset(seed=seed, options=options)
        if seed is not None or not self.slots.rng:
            self.slots.seed([seed])
        self.slots.reset(np.array([0]))
        return self.slots.observe()[0], self.slots.info(0)

    def step(self, action: Any) -> tuple[Floats32, float, bool, bool, dict[str, Any]]:
        """Trades to the target at the next open and answers after the next close."""
        positions = positions_of(np.asarray(action).reshape(1), self.config.action)
        reward, terminated, truncated = self.slots.step(positions)
        info = self.slots.info(0)
        return self.slots.observe()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


class SwingVectorEnv(gym.vector.VectorEnv[Floats32, Any, npt.NDArray[Any]]):
    """B slots in one set of arrays. See the module."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        panel: str | Market,
        span: tuple[int, int],
        scaler: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Opens the market; arguments as for `SwingEnv`."""
        self.num_envs = num_envs
        self.config = EnvConfig.of(settings or {}, "env")
        self.slots = _Slots(num_envs, _market(panel, scaler), span, self.config)
        self.single_observation_space, self.single_action_space = _spaces(self.slots.market, self.config)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002  (Gymnasium's interface)
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode in every slot; an integer seed s gives slot i the seed s + i."""
        if isinstance(seed, int):
            seed = [seed + slot for slot in range(self.num_envs)]
        if seed is not None or not self.slots.rng:
            self.slots.seed(seed or [None] * self.num_envs)
        self.slots.reset(np.arange(self.num_envs))
        self._ended[:] = False
        return self.slots.observe(), {}

    def step(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """Steps every slot; `[B, F + P]`, `[B]`, `[B]`, `[B]`."""
        positions = positions_of(np.asarray(actions).reshape(self.num_envs), self.config.action)
        restart, live = np.flatnonzero(self._ended), ~self._ended
        self.slots.t[restart] -= 1  # they still stand on their last row; keep the gather inside the panel
        reward, terminated, truncated = self.slots.step(positions)
        if len(restart):
            self.slots.reset(restart)
        terminated, truncated = terminated & live, truncated & live
        self._ended = terminated | truncated
        return self.slots.observe(), np.where(live, reward, 0.0), terminated, truncated, {}


def register() -> None:
    """Makes `gym.make` and `gym.make_vec` know `swing_rl/Swing-v0`; calling it twice changes nothing."""
    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID,
            entry_point="envs.swing:SwingEnv",
            vector_entry_point="envs.swing:SwingVectorEnv",
            order_enforce=False,
        )
