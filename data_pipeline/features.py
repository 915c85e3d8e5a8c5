"""Declared features: an indicator, a window and a timeframe under one name, and ordered sets of them.

A name is the indicator's pattern with its window, after an optional timeframe: `rsi_14`, `week.return_4`,
`hour.sma_20_distance`. A set is YAML; its schema hash travels to the bundle, and a bundle is served only by
code that computes the same.

A feature at session t uses bars that are closed at the close of t, from total-return adjusted prices.
Missing values: NaN during warm-up, never filled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data_pipeline.adjusted import Bars, Column
from data_pipeline.config import canonical_json, read_yaml
from data_pipeline.errors import ConfigError
from data_pipeline.indicators import INDICATORS, Indicator

FeatureTimeframe = Literal["day", "week", "hour", "5min"]
INTRADAY: tuple[FeatureTimeframe, ...] = ("hour", "5min")
# Bars that a short exchange session holds; a longest look-back in sessions follows from it.
_BARS_PER_SESSION = {"day": 1.0, "week": 1 / 5, "hour": 4.0, "5min": 42.0}
_TIMEFRAMES: dict[str, FeatureTimeframe] = {timeframe: timeframe for timeframe in get_args(FeatureTimeframe)}
_DAY_ONLY = ("market", "breadth", "session")

DAILY_MEMORY_SESSIONS = 640
"""Sessions of daily bars that precede a value at most; no feature may remember longer."""
INTRADAY_MEMORY_SESSIONS = 120
"""The same for intraday bars."""
BLOCK_SESSIONS = 2520
"""Values of one block of exchange sessions are computed from the same first bar.

So a value depends on the bars of at most its block and the memory before it, and adding a session to a
panel recomputes one block, bit for bit as building everything again would.
"""


@dataclass(frozen=True)
class Feature:
    """An indicator of one timeframe's bars.

    Attributes:
        name: Unique; part of the schema hash.
        timeframe: Of the bars.
        indicator: What is computed.
        window: Its n, in bars; 0 where it has none.
    """

    name: str
    timeframe: FeatureTimeframe
    indicator: Indicator
    window: int

    @property
    def group(self) -> str:
        """Family, for choosing and for ablation."""
        return self.indicator.group if self.timeframe == "day" else f"{self.timeframe} {self.indicator.group}"

    @cached_property
    def warm_up(self) -> int:
        """Bars before the first value."""
        return self.indicator.warm_up(self.window)

    @cached_property
    def look_back(self) -> int:
        """Sessions before t beyond which nothing changes the value by more than 1e-9."""
        bars = (self.indicator.memory or self.indicator.warm_up)(self.window)
        return bars if self.timeframe == "day" else int(np.ceil((bars + 1) / _BARS_PER_SESSION[self.timeframe]))

    def compute(self, bars: Bars) -> Column:
        """Returns the values at bars of the feature's own timeframe, `[T]`, NaN during warm-up."""
        if len(bars) <= self.warm_up:
            return np.full(len(bars), np.nan)
        values = self.indicator.compute(bars, self.window)
        if not values.flags.writeable:
            values = values.copy()
        if self.indicator.neutral is not None:
            np.copyto(values, self.indicator.neutral, where=np.isnan(values))
        values[: self.warm_up] = np.nan
        return values


@cache
def feature(name: str) -> Feature:
    """Returns the feature of that name.

    Raises:
        ConfigError: No indicator has this name, its window does not fit, or it would remember too long.
    """
    prefix, dot, rest = name.rpartition(".")
    timeframe = _TIMEFRAMES.get(prefix if dot else "day")
    if timeframe is None:
        raise ConfigError(
            f"feature {name!r}: unknown timeframe {prefix!r}; choose from week, hour, 5min, or none (daily)"
        )
    indicator, window = _parsed(name, rest)
    needless = timeframe != "day" and set(indicator.inputs) & set(_DAY_ONLY)
    if needless or (indicator.group == "session" and timeframe not in INTRADAY):
        raise ConfigError(f"feature {name!r}: {indicator.pattern} does not exist on {timeframe} bars; choose another")
    found = Feature(name, timeframe, indicator, window)
    longest = INTRADAY_MEMORY_SESSIONS if timeframe in INTRADAY else DAILY_MEMORY_SESSIONS
    if found.look_back > longest:
        raise ConfigError(
            f"feature {name!r} remembers {found.look_back} sessions, more than {longest}; give a shorter window"
        )
    return found


def _parsed(name: str, rest: str) -> tuple[Indicator, int]:
    for indicator in INDICATORS:
        match = re.fullmatch(re.escape(indicator.pattern).replace(r"\{n\}", "([0-9]{1,4})"), rest)
        if match is not None:
            window = int(match[1]) if match.groups() else 0
            if match.groups() and window < (1 if indicator.pattern in ("return_{n}", "roc_{n}") else 2):
                raise ConfigError(f"feature {name!r}: a window of {window} is too short; give at least 2")
            return indicator, window
    known = ", ".join(indicator.pattern for indicator in INDICATORS)
    raise ConfigError(f"feature {name!r} is unknown; with n a number of bars, choose from {known}")


@dataclass(frozen=True)
class FeatureSet:
    """An ordered choice of features; the order is the order of the F axis everywhere."""

    features: tuple[Feature, ...]

    @classmethod
    def of(cls, chosen: tuple[str, ...] | Path | None = None) -> FeatureSet:
        """Returns the set of these names, of a YAML file, or the default set (None).

        Raises:
            ConfigError: A name is unknown or given twice, or the file is no mapping of groups to names.
        """
        if not isinstance(chosen, tuple):
            chosen = _names_in(chosen)
        twice = sorted({name for name in chosen if chosen.count(name) > 1})
        if twice or not chosen:
            raise ConfigError(f"features {', '.join(twice) or '(none)'}: name each feature once, and at least one")
        return cls(tuple(feature(name) for name in chosen))

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def look_back(self) -> int:
        """The longest look-back of the set, in sessions."""
        return max(feature.look_back for feature in self.features)

    @property
    def timeframes(self) -> frozenset[FeatureTimeframe]:
        """Timeframes of the bars that are read."""
        return frozenset(feature.timeframe for feature in self.features)

    @property
    def needs_intraday(self) -> bool:
        """Whether 5-minute bars are needed beside the daily ones."""
        return not self.timeframes.isdisjoint(INTRADAY)

    @property
    def schema_hash(self) -> str:
        """sha256 of what a value means: names, order, inputs, look-backs, and how the bars are cut."""
        meaning = {
            "features": [
                [f.name, f.timeframe, list(f.indicator.inputs), f.look_back, f.indicator.neutral] for f in self.features
            ],
            "bars": "total-return adjusted, as of the close",
            "blocks": [BLOCK_SESSIONS, DAILY_MEMORY_SESSIONS, INTRADAY_MEMORY_SESSIONS],
            "version": 2,
        }
        return hashlib.sha256(canonical_json(meaning)).hexdigest()


def _names_in(path: Path | None) -> tuple[str, ...]:
    with resources.as_file(resources.files("data_pipeline") / "default_features.yaml") as default:
        tree: dict[str, Any] = read_yaml(path or default)
    names = []
    for group, members in tree.items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise ConfigError(f"{path}: {group}: holds {members!r}; a list of feature names is wanted")
        names.extend(members)
    return tuple(names)
