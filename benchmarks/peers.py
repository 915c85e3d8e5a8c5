"""Trading environments of others on the same bars, as their own documentation sets them up, costs on.

Each function builds one peer and returns its forms by name: functions that step it with random actions for so many
CPU-seconds, resets included, and return steps per CPU-second. It raises ImportError where the peer is absent.

In the peers' favour: episodes last the whole history, so that they reset twenty times less often than we do, and
observations are a handful of columns where ours have all features.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gymnasium.vector import SyncVectorEnv

from benchmarks.shape import rate
from benchmarks.stepping import Work, slot_steps_of, steps_of

Forms = dict[str, Callable[[], float]]
SLOTS = 8
_STEPS = 500


def gym_anytrading(day: pd.DataFrame, seconds: float) -> Forms:
    """gym-anytrading's StocksEnv, alone and in Gymnasium's SyncVectorEnv.

    Args:
        day: Adjusted daily bars: open, high, low, close, volume, by session.
        seconds: Of CPU for each run.
    """
    with _silence():
        from gym_anytrading.envs import StocksEnv

        prices = pd.DataFrame({"Close": day["close"]})

        def stocks() -> Any:
            return StocksEnv(prices, window_size=10, frame_bound=(10, len(prices)))

        return {
            "alone": _timed(steps_of(stocks(), _choices(2, _STEPS).tolist()), seconds),
            "sync_8": _timed(slot_steps_of(SyncVectorEnv([stocks] * SLOTS), _choices(2, _STEPS, SLOTS)), seconds),
        }


def gym_trading_env(day: pd.DataFrame, seconds: float) -> Forms:
    """gym-trading-env's TradingEnv with fees and borrowing; arguments as for `gym_anytrading`."""
    with _silence():  # also takes back the global filter that its import sets
        from gym_trading_env.environments import TradingEnv

        features = pd.DataFrame(
            {
                "feature_close": day["close"].pct_change(),
                "feature_open": day["open"] / day["close"],
                "feature_high": day["high"] / day["close"],
                "feature_low": day["low"] / day["close"],
                "feature_volume": day["volume"] / day["volume"].rolling(20).max(),
            }
        )
        env = TradingEnv(
            day.join(features).dropna(),
            positions=[-1, 0, 1],
            trading_fees=0.0001,
            borrow_interest_rate=0.00002,
            verbose=0,
        )
        return {"alone": _timed(steps_of(env, _choices(3, _STEPS).tolist()), seconds)}


def finrl(day: pd.DataFrame, seconds: float) -> Forms:
    """FinRL's StockTradingEnv with one stock and its documented costs; arguments as for `gym_anytrading`."""
    with _silence():
        bars = pd.DataFrame({"date": day.index.astype(str), "tic": "IBM", "close": day["close"].to_numpy()})
        env = _finrl_class()(
            df=bars.assign(volume=day["volume"].to_numpy()),
            stock_dim=1,
            hmax=100,
            initial_amount=1_000_000,
            num_stock_shares=[0],
            buy_cost_pct=[0.001],
            sell_cost_pct=[0.001],
            reward_scaling=1e-4,
            state_space=4,
            action_space=1,
            tech_indicator_list=["volume"],
            print_verbosity=10**9,
        )
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (_STEPS, 1))
        return {"alone": _timed(steps_of(env, list(actions)), seconds)}


PEERS: dict[str, Callable[[pd.DataFrame, float], Forms]] = {
    "gym_anytrading": gym_anytrading,
    "gym_trading_env": gym_trading_env,
    "finrl": finrl,
}


def _finrl_class() -> Any:
    """Returns the environment from its file: the package's __init__ imports brokers that it does not install."""
    package = importlib.util.find_spec("finrl")
    if package is None or package.origin is None:
        raise ImportError("No module named 'finrl'", name="finrl")
    file = Path(package.origin).parent / "meta" / "env_stock_trading" / "env_stocktrading.py"
    spec = importlib.util.spec_from_file_location("finrl_env_stocktrading", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a module", name="finrl")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StockTradingEnv


def _timed(work: Work, seconds: float) -> Callable[[], float]:
    def run() -> float:
        with _silence():
            return rate(work, seconds)

    return run


@contextmanager
def _silence() -> Iterator[None]:
    """Hides the warnings of peers, and nothing else's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _choices(kinds: int, *shape: int) -> Any:
    return np.random.default_rng(0).integers(0, kinds, shape)
