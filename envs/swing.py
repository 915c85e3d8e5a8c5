"""Gymnasium shells around the simulator: `swing_rl/Swing-v0` and `swing_rl/Portfolio-v0`, scalar and vector.

Slot i of a vector environment seeded with s behaves as a scalar environment seeded with s + i, whatever the number
of slots, so any split over workers gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from data_pipeline.errors import ConfigError
from envs.contract import OBSERVATION_BOUND, ActionKind, Bools, Floats, Floats32, Ints, positions_of
from envs.market import Market
from envs.simulator import Accounts, EnvConfig, PanelAccounts, SlotAccounts

ENV_ID = "swing_rl/Swing-v0"
PORTFOLIO_ENV_ID = "swing_rl/Portfolio-v0"


class _Shell:
    """What scalar and vector shells share."""

    accounts_class: ClassVar[type[SlotAccounts | PanelAccounts]]
    accounts: Accounts

    def _open(
        self,
        count: int,
        panel: str | Market,
        span: tuple[int, int],
        scaler: dict[str, Any] | None,
        settings: dict[str, Any] | EnvConfig | None,
    ) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Opens the market and returns the spaces of one account's observations and actions."""
        self.config = settings if isinstance(settings, EnvConfig) else EnvConfig.of(settings or {}, "env")
        market = panel if isinstance(panel, Market) else Market.open(panel, scaler or {})
        self.accounts = self.accounts_class(count, market, span, self.config)
        self.market_features = self.accounts.market_features
        self.portfolio_features = self.accounts.portfolio_features
        width = self.market_features + len(self.portfolio_features)
        observed = gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (width,), np.float32)
        return observed, self._actions()

    def _actions(self) -> gym.Space[Any]:
        members = self.accounts.members
        if self.config.action is ActionKind.CONTINUOUS:
            return gym.spaces.Box(-1.0, 1.0, (members,), np.float32)
        if self.accounts_class is SlotAccounts:
            return gym.spaces.Discrete(3)
        return gym.spaces.MultiDiscrete([3] * members)

    def _positions(self, actions: Any) -> Floats:
        """Returns target positions `[N, B]` of actions `[B]` or `[B, N]`."""
        accounts = self.accounts
        self._need_reset("step")
        by_account = np.asarray(actions).reshape(accounts.count, accounts.members)
        return np.ascontiguousarray(positions_of(by_account, self.config.action).T)

    def _need_reset(self, what: str) -> None:
        if not self.accounts.seeded:
            raise gym.error.ResetNeeded(f"{what} before reset: call reset first, it starts the episodes")

    @property
    def cost_scale(self) -> float:
        """All prices of trading and holding are multiplied by this: a curriculum may raise it from 0 to 1."""
        return self.accounts.cost_scale

    @cost_scale.setter
    def cost_scale(self, factor: float) -> None:
        self.accounts.cost_scale = factor

    @property
    def masks_actions(self) -> bool:
        """True where some short may be forbidden; infos then carry `action_mask`."""
        limits = self.config.limits
        return self.config.action is ActionKind.DISCRETE and (limits.long_only or bool(limits.unshortable))

    def action_masks(self) -> Bools:
        """Returns which actions are allowed, in the order that sb3-contrib asks for.

        Scalar: `[3]`, or `[N * 3]` symbol by symbol; vector: with B in front. Whoever takes a forbidden one all the
        same gets cash.
        """
        masks = self.accounts.action_masks().reshape(self.accounts.count, -1)
        return masks[0] if isinstance(self, gym.Env) else masks


class SwingEnv(_Shell, gym.Env[Floats32, Any]):
    """One account that trades one symbol.

    ## Description
    Positions are decided at the close of a session and traded at the next open, net of all costs. The account may
    be anyone's: the policy sees the market and its own position, nothing of the size.

    ## Action Space
    `Discrete(3)`: 0 short, 1 cash, 2 long; or `Box(-1, 1, (1,))`: target position, a part of the budget that
    `limits` give the symbol. An unchanged target costs nothing.

    ## Observation Space
    `Box(-5, 5, (F + P,), float32)`
    | what | unit |
    |---|---|
    | F market features of the session just closed | median and interquartile range of the training span |
    | position | weight over budget |
    | sessions_held | sessions in the present position, in units of 20, at most 2 |

    ## Rewards
    `rewards.scale` × the weighted terms of `envs.rewards`; by default 100 × log return of equity from close to close.

    ## Starting State
    A symbol and session of the span, each possible pair equally likely, all cash.

    ## Episode End
    Terminated when equity falls below `ruin_fraction` of the start, when `limits.max_drawdown` is broken, or when
    the symbol is delisted: nothing can be earned after. Truncated after `episode_sessions` decisions: the value goes
    on, and must be bootstrapped from the last observation.

    ## Arguments
    panel: folder of a saved panel, or an open `Market` (not through `gym.make`, which copies what it is given); span:
    first row and the row after the last that an episode may touch; scaler: `Scaler` as a mapping, needed with a
    folder; settings: `EnvConfig` or a mapping of it.

    ## Version History
    v0: first.
    """

    accounts_class: ClassVar[type[SlotAccounts | PanelAccounts]] = SlotAccounts
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        panel: str | Market,
        span: tuple[int, int],
        scaler: dict[str, Any] | None = None,
        settings: dict[str, Any] | EnvConfig | None = None,
    ) -> None:
        self.observation_space, self.action_space = self._open(1, panel, span, scaler, settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed, options=options)
        if seed is not None or not self.accounts.seeded:
            self.accounts.seed([self._seed_of(seed)])
        self.accounts.reset(np.array([0]))
        self.accounts.reward_terms = {}
        return self.accounts.observe()[0], self._info()

    def step(self, action: Any) -> tuple[Floats32, float, bool, bool, dict[str, Any]]:
        """Trades to the target at the next open and answers after the next close."""
        reward, terminated, truncated = self.accounts.step(self._positions(action))
        observed = self.accounts.observe()[0]
        return observed, float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._info()

    def _seed_of(self, seed: int | None) -> int:
        return int(self.np_random.integers(2**31)) if seed is None else seed

    def _info(self) -> dict[str, Any]:
        info = self.accounts.info(0)
        return {**info, "action_mask": self.action_masks()} if self.masks_actions else info


class SwingVectorEnv(_Shell, gym.vector.VectorEnv[Floats32, Any, npt.NDArray[Any]]):
    """B accounts of `SwingEnv` in one set of arrays.

    `metadata["autoreset_mode"]` says what follows an episode's end. NEXT_STEP, which stock RLlib takes for granted:
    the next step ignores that slot's action, resets it and answers reward 0. SAME_STEP: the step that ends an episode
    answers the first observation of the next one; the last of the old stands in `infos["final_obs"]`, `[B, D]`, in
    the rows that `infos["_final_obs"]` marks.

    `infos["reward_terms"]` holds the unweighted terms by name, `[B]` each, where there is more than one.
    """

    accounts_class: ClassVar[type[SlotAccounts | PanelAccounts]] = SlotAccounts
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        panel: str | Market,
        span: tuple[int, int],
        scaler: dict[str, Any] | None = None,
        settings: dict[str, Any] | EnvConfig | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Opens the market; arguments as for `SwingEnv`."""
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self._open(num_envs, panel, span, scaler, settings)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise ConfigError("autoreset_mode Disabled: slots reset themselves; choose NextStep or SameStep")
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self._same_step = mode is AutoresetMode.SAME_STEP
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002  (Gymnasium's interface)
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode in every slot; an integer seed s gives slot i the seed s + i."""
        if seed is not None or not self.accounts.seeded:
            self.accounts.seed(self._seeds_of(seed))
        self.accounts.reset(np.arange(self.num_envs))
        self.accounts.reward_terms = {}
        self._ended[:] = False
        return self.accounts.observe(), self._infos()

    def step(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """Steps every slot; `[B, D]`, `[B]`, `[B]`, `[B]`."""
        return self._step_same(actions) if self._same_step else self._step_next(actions)

    def market_ahead(self, steps: int, slots: Ints | None = None) -> Floats32:
        """Returns the market part of the observations of this and the next `steps` - 1 decisions, `[steps, b, F]`.

        It is what the present episodes would show if they went on, bit for bit; row 0 is that of the present
        observation, and rows after the last bar or decision repeat the final one. Ruin and the drawdown stop, which
        depend on actions, end nothing here. No action changes the market, so a recurrent learner may run over a
        whole fragment in one call. For the learner only: a policy never sees any of it ahead of time.

        Args:
            steps: At least 1.
            slots: The b slots asked about; None: all.

        Raises:
            ResetNeeded: There is no episode yet.
        """
        self._need_reset("market_ahead")
        return self.accounts.market_ahead(steps, slots)

    def _step_next(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        restart = np.flatnonzero(self._ended)
        if not len(restart):
            reward, terminated, truncated = self.accounts.step(self._positions(actions))
        else:
            live = ~self._ended
            self.accounts.step_back(restart)
            reward, terminated, truncated = self.accounts.step(self._positions(actions))
            self.accounts.reset(restart)
            for values in self.accounts.reward_terms.values():
                values[restart] = 0.0
            reward, terminated, truncated = np.where(live, reward, 0.0), terminated & live, truncated & live
        self._ended = terminated | truncated
        return self.accounts.observe(), reward, terminated, truncated, self._infos()

    def _step_same(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        reward, terminated, truncated = self.accounts.step(self._positions(actions))
        observed, infos, ended = self.accounts.observe(), self._infos(), terminated | truncated
        if ended.any():
            infos |= {"final_obs": observed, "_final_obs": ended}
            self.accounts.reset(np.flatnonzero(ended))
            observed = self.accounts.observe()
        return observed, reward, terminated, truncated, infos

    def _seeds_of(self, seed: int | Sequence[int | None] | None) -> list[int]:
        if isinstance(seed, int | np.integer):
            return [int(seed) + slot for slot in range(self.num_envs)]
        given = list(seed) if seed is not None else [None] * self.num_envs
        return [int(self.np_random.integers(2**31)) if each is None else each for each in given]

    def _infos(self) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        if len(self.accounts.reward_terms) > 1:
            infos["reward_terms"] = self.accounts.reward_terms
        if self.masks_actions:
            infos["action_mask"] = self.action_masks()
        return infos


class PortfolioEnv(SwingEnv):
    """One account that trades all N symbols of the panel at once.

    ## Action Space
    `MultiDiscrete([3] * N)` or `Box(-1, 1, (N,))`: target position of each symbol. `limits` turn them into weights
    with cash, within gross and net limits. A symbol that is not ready is left alone, whatever its action.

    ## Observation Space
    `Box(-5, 5, (N·F + N·(P + 1) + 1,), float32)`
    | what | unit |
    |---|---|
    | F market features of each symbol, symbol by symbol | as in `SwingEnv`; 0 where not ready |
    | position of each symbol | weight over budget |
    | sessions_held of each symbol | in units of 20, at most 2 |
    | ready of each symbol | 1 traded and all features known, else 0 |
    | cash | over equity |

    ## Starting State
    A session of the span at which at least one symbol is ready, all cash.

    ## Episode End
    As in `SwingEnv`; terminated by delisting only when the last symbol is gone.

    Description, rewards and arguments are those of `SwingEnv`.
    """

    accounts_class = PanelAccounts


class PortfolioVectorEnv(SwingVectorEnv):
    """B accounts of `PortfolioEnv` in one set of arrays; see `SwingVectorEnv`."""

    accounts_class = PanelAccounts


def register() -> None:
    """Makes `gym.make` and `gym.make_vec` know both environments; calling it twice changes nothing."""
    for name, kind in ((ENV_ID, "Swing"), (PORTFOLIO_ENV_ID, "Portfolio")):
        if name not in gym.registry:
            gym.register(
                name,
                entry_point=f"envs.swing:{kind}Env",
                vector_entry_point=f"envs.swing:{kind}VectorEnv",
                order_enforce=False,
            )
