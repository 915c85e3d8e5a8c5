"""B accounts stepped in one set of arrays; the Gymnasium shells only translate.

`SlotAccounts`: each account trades one symbol, drawn anew for each episode. `PanelAccounts`: each account trades all
symbols of the panel. Both are the same code on arrays `[N, B]`, with N = 1 for slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError
from envs.chance import Keys, Streams, derived, keys_of, uniforms
from envs.contract import (
    OBSERVATION_BOUND,
    PORTFOLIO_FEATURES,
    ActionKind,
    Bools,
    Floats,
    Floats32,
    Ints,
    everywhere,
    portfolio_state,
    total,
)
from envs.costs import Costs
from envs.limits import Limits, budgets
from envs.market import Market, Starts, column, shortable_symbols, step_bars
from envs.portfolio import Book, Fills, opening_book, step
from envs.rewards import Moments, Rewards, differential_sharpe, drawdown, excess, log_return, turnover


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
    rewards: Rewards = Rewards()
    """Terms of the reward and their weights."""
    limits: Limits = Limits()
    """Allocation and limits, the same in training, backtest and trading."""
    costs: Costs = Costs()
    """The cost model."""


class Accounts(ABC):
    """State and transitions of B accounts over N symbols each.

    Attributes:
        market_features: Width of the observation's first part, which no action changes.
        portfolio_features: Names of the rest.
        reward_terms: Unweighted terms of the last step by name, `[B]` each.
        fills: Of the last step.
    """

    market_features: int
    portfolio_features: tuple[str, ...]

    def __init__(self, count: int, members: int, market: Market, starts: Starts, config: EnvConfig) -> None:
        self.market, self.config, self.count, self.members = market, config, count, members
        self.starts = starts
        self.reward_terms: dict[str, Floats] = {}
        self.fills: Fills | None = None
        self._costs, self._cost_scale = config.costs, 1.0
        self._borrowable = shortable_symbols(market.panel.symbols, config.limits.unshortable)
        shape = (members, count)
        self._keys: Keys = np.zeros(0, np.uint64)
        self._episode: Ints = np.full(count, -1, np.int64)
        self._streams = Streams(shape)
        self._age: Ints = np.zeros(count, np.int64)
        self._t: Ints = np.zeros(count, np.int64)
        self._n: Ints = np.zeros(shape, np.int64)
        self._row: Ints = np.zeros(shape, np.int64)
        self._last: Ints = np.zeros(shape, np.int64)
        self._now: Floats = market.bars_at(self._row)
        self._ready: Bools = np.ones(shape, np.bool_)
        self._shortable: Bools = np.ones(shape, np.bool_)
        self._some_gone = False
        self._no_luck: Floats = np.zeros(shape)
        self._moments = Moments.prior(count)
        self.book: Book = opening_book(np.zeros(count), np.zeros(shape))

    @property
    def cost_scale(self) -> float:
        """All prices of trading and holding are multiplied by this: a curriculum may raise it from 0 to 1."""
        return self._cost_scale

    @cost_scale.setter
    def cost_scale(self, factor: float) -> None:
        if not 0.0 <= factor < np.inf:
            raise ConfigError(f"cost_scale {factor}: give a finite number of at least 0")
        self._cost_scale = float(factor)
        self._costs = self.config.costs if factor == 1.0 else self.config.costs.scaled(factor)

    @property
    def seeded(self) -> bool:
        """True once `seed` was called."""
        return len(self._keys) > 0

    def seed(self, seeds: Sequence[int]) -> None:
        """Gives each account a seed; its episodes are then numbered from 0."""
        self._keys = keys_of(seeds)
        self._episode[:] = -1

    def reset(self, slots: Ints) -> None:
        """Starts a new episode in `slots`, all cash."""
        self._episode[slots] += 1
        keys = derived(self._keys[slots], self._episode[slots])
        n, t = self._drawn(uniforms(keys))
        self._streams.restart(slots, derived(keys, np.arange(self.members)[:, None]))
        self._age[slots], self._t[slots] = 0, t
        self._n[:, slots], self._last[:, slots] = n, self.market.last_bar[n]
        self._row[:, slots] = n * self.market.sessions + t
        self._shortable[:, slots] = self._borrowable[n]
        self._now[..., slots] = self.market.bars_at(self._row[:, slots])
        self._look(slots)
        cash = np.full(len(slots), self.config.initial_cash_usd)
        fresh = opening_book(cash, column(self._now, "close")[:, slots])
        for mine, new in zip((*self.book, *self._moments), (*fresh, *Moments.prior(len(slots))), strict=True):
            mine[..., slots] = new

    def step_back(self, slots: Ints) -> None:
        """Makes `slots`, whose episodes are over, fit to be stepped with the rest once more before their reset."""
        self._row[:, slots] -= 1
        self._t[slots] -= 1

    def step(self, positions: Floats) -> tuple[Floats, Bools, Bools]:
        """Returns reward, terminated, truncated, `[B]` each, for target positions `[N, B]`."""
        config, before = self.config, self.book
        following = self.market.bars_at(self._row + 1)
        listed = self._t < self._last
        bars = step_bars(self._now, following, self._ready, self._shortable, listed, self._luck())
        self.book, self.fills = step(before, positions, bars, config.limits, self._costs)
        reward = self._rewarded(before, self.fills, following)
        self._now = following
        self._row += 1
        self._t += 1
        self._age += 1
        self._look(None)
        terminated = self.book.equity < config.ruin_fraction * config.initial_cash_usd
        self._some_gone = not everywhere(listed)
        if self._some_gone:
            terminated |= ~listed.any(axis=0)
        if config.limits.max_drawdown is not None:
            terminated |= self.book.drawdown > config.limits.max_drawdown
        return reward, terminated, (self._age >= config.episode_sessions) & ~terminated

    @abstractmethod
    def observe(self) -> Floats32:
        """Returns observations `[B, D]`, a fresh array."""

    @abstractmethod
    def market_ahead(self, steps: int, slots: Ints | None) -> Floats32:
        """Returns the market part of this and the next `steps` - 1 observations of `slots`, `[steps, b, F]`.

        See `envs.swing.SwingVectorEnv.market_ahead`.
        """

    def _ahead(self, steps: int, slots: Ints | slice) -> Ints:
        """Returns how many sessions after the present one each of the next decisions lies, `[steps, b]`."""
        return np.minimum(np.arange(steps)[:, None], self.config.episode_sessions - self._age[slots])

    @abstractmethod
    def _drawn(self, luck: Floats) -> tuple[Ints, Ints]:
        """Returns the columns `[N, b]` and the first session rows `[b]` of b episodes, for luck `[b]`."""

    @abstractmethod
    def _look(self, slots: Ints | None) -> None:
        """Notes which symbols are ready at the present session; None: of all accounts."""

    def action_masks(self) -> Bools:
        """Returns which of {short, cash, long} are allowed, `[B, N, 3]`."""
        masks = np.ones((self.count, self.members, 3), np.bool_)
        masks[..., 0] = False if self.config.limits.long_only else self._shortable.T
        return masks

    def info(self, slot: int) -> dict[str, Any]:
        """Returns what a person would ask about one account."""
        return {
            "session": str(self.market.panel.sessions[self._t[slot]]),
            "equity_usd": float(self.book.equity[slot]),
            "reward_terms": {name: float(values[slot]) for name, values in self.reward_terms.items()},
        }

    def _luck(self) -> Floats:
        return self._streams.draw() if self._costs.slippage_bps else self._no_luck

    def _rewarded(self, before: Book, fills: Fills, following: Floats) -> Floats:
        weights, book = self.config.rewards, self.book
        growth = log_return(book.equity, before.equity)
        terms: dict[str, Floats] = {}
        if weights.log_return:
            terms["log_return"] = growth
        if weights.excess:
            terms["excess"] = excess(growth, self._benchmark(following))
        if weights.differential_sharpe:
            terms["differential_sharpe"], self._moments = differential_sharpe(growth, self._moments)
        if weights.drawdown:
            terms["drawdown"] = drawdown(book.drawdown, before.drawdown)
        if weights.turnover:
            terms["turnover"] = turnover(fills.traded, before.equity)
        self.reward_terms = terms
        factors = ((weights.scale * getattr(weights, name), values) for name, values in terms.items())
        return np.asarray(sum(factor * values for factor, values in factors))

    def _benchmark(self, following: Floats) -> Floats:
        """Returns the simple total return to t+1 of all symbols ready at t in equal parts, `[B]`."""
        moves = column(following, "adjusted_close") / column(self._now, "adjusted_close") - 1.0
        known = self._ready & np.isfinite(moves)
        return total(np.where(known, moves, 0.0)) / np.maximum(known.sum(axis=0), 1)

    def _portfolio(self, out: Floats32) -> None:
        """Writes the state of each position to `out`, `[N, B, P]`."""
        budget = budgets(self._ready, column(self._now, "sigma"), self.config.limits)
        portfolio_state(self.book.weights, budget, self.book.sessions_held, out)


class SlotAccounts(Accounts):
    """One symbol for each account. See the module."""

    def __init__(self, count: int, market: Market, span: tuple[int, int], config: EnvConfig) -> None:
        super().__init__(count, 1, market, market.slot_starts(*span, config.episode_sessions), config)
        self.market_features = market.feature_count
        self.portfolio_features = PORTFOLIO_FEATURES

    def observe(self) -> Floats32:
        """Returns `[B, F + P]`: the symbol's features, then the state of its position."""
        # A symbol that was delisted has no features any more; the episode is over and shows its last ones.
        rows = self._row[0] - (self._t > self._last[0]) if self._some_gone else self._row[0]
        observed = np.empty((self.count, self.market_features + len(PORTFOLIO_FEATURES)), np.float32)
        self.market.features_at(rows, observed[:, : self.market_features])
        self._portfolio(observed[None, :, self.market_features :])
        return observed

    def market_ahead(self, steps: int, slots: Ints | None) -> Floats32:
        """Returns the symbol's features, `[steps, b, F]`."""
        chosen = slice(None) if slots is None else slots
        listed_for = (self._last[0] - self._t)[chosen]  # -1 after the last bar, which `observe` shows as well
        rows = self._row[0, chosen] + np.minimum(self._ahead(steps, chosen), listed_for)
        return self.market.many_features_at(rows)

    def info(self, slot: int) -> dict[str, Any]:
        """Returns what a person would ask about one account."""
        return {"symbol": self.market.panel.symbols[self._n[0, slot]], **super().info(slot)}

    def _drawn(self, luck: Floats) -> tuple[Ints, Ints]:
        n, t = self.starts.draw(luck)
        return n[None], t

    def _look(self, slots: Ints | None) -> None:
        pass  # episodes lie where their symbol is ready throughout


class PanelAccounts(Accounts):
    """All symbols of the panel for each account. See the module."""

    def __init__(self, count: int, market: Market, span: tuple[int, int], config: EnvConfig) -> None:
        symbols = market.panel.symbols
        starts = market.account_starts(*span, config.episode_sessions)
        super().__init__(count, len(symbols), market, starts, config)
        self.market_features = len(symbols) * market.feature_count
        kinds = (*PORTFOLIO_FEATURES, "ready")
        self.portfolio_features = (*(f"{kind}.{symbol}" for kind in kinds for symbol in symbols), "cash")

    def observe(self) -> Floats32:
        """Returns `[B, N·F + N·(P + 1) + 1]`; what is not ready has features of 0 and says so.

        Features symbol by symbol, then position, sessions held and readiness of each symbol, then cash over equity.
        """
        features = self.market.features_at(self._row.ravel()).reshape(self.members, self.count, -1)
        features = np.where(self._ready[..., None], features, np.float32(0))
        state = np.empty((self.members, self.count, len(PORTFOLIO_FEATURES)), np.float32)
        self._portfolio(state)
        cash = np.clip(1.0 - total(self.book.weights), -OBSERVATION_BOUND, OBSERVATION_BOUND)
        parts = (
            features.swapaxes(0, 1).reshape(self.count, -1),
            state.transpose(1, 2, 0).reshape(self.count, -1),
            self._ready.T.astype(np.float32),
            cash[:, None].astype(np.float32),
        )
        return np.concatenate(parts, axis=1)

    def market_ahead(self, steps: int, slots: Ints | None) -> Floats32:
        """Returns the features of all symbols, `[steps, b, N·F]`; those of what is not ready are 0."""
        chosen = slice(None) if slots is None else slots
        rows = self._row[:, chosen].T + self._ahead(steps, chosen)[..., None]
        features = self.market.many_features_at(rows)
        features[~self.market.ready_at(rows)] = 0
        return features.reshape(*rows.shape[:2], -1)

    def _drawn(self, luck: Floats) -> tuple[Ints, Ints]:
        _, t = self.starts.draw(luck)
        return np.broadcast_to(np.arange(self.members)[:, None], (self.members, len(t))), t

    def _look(self, slots: Ints | None) -> None:
        if slots is None:
            self._ready = self.market.ready_at(self._row)
        else:
            self._ready[:, slots] = self.market.ready_at(self._row[:, slots])
