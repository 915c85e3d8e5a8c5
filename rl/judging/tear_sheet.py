"""quantstats' page on a policy against a benchmark, made to need no network."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path

import polars as pl

from envs.backtest import Ledger
from rl.judging.metrics import solvent_returns
from rl.judging.pages import scratch, write

_FETCHES_OR_FAILS = re.compile(r'<link[^>]*favicon[^>]*>| onload="save\(\)"')
"""In quantstats' page: an icon from the network, and a call of a function that is not there."""


def write_tear_sheet(path: Path, title: str, own: Ledger, other: Ledger) -> Path | None:
    """Writes the page and returns its path; None, and no page is left there, if one of the two never moved.

    Args:
        path: Of the page.
        title: Heading.
        own: Of the policy.
        other: Of the benchmark.
    """
    pair = (own, other)
    policy, benchmark = (pl.Series(ledger.name, solvent_returns(ledger)).to_pandas() for ledger in pair)
    if policy.nunique() < 2 or benchmark.nunique() < 2:
        path.unlink(missing_ok=True)
        return None
    for returns, ledger in zip((policy, benchmark), pair, strict=True):
        returns.index = ledger.account["session"].cast(pl.Datetime("ns")).to_pandas()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = scratch(path)
    with warnings.catch_warnings():
        # Both call what newer pandas and matplotlib deprecate; nothing here depends on it.
        warnings.filterwarnings("ignore", module=r"quantstats\.|seaborn\.")
        _quantstats_html()(
            policy,
            benchmark=benchmark,
            output=str(unfinished),
            title=escape(title),
            strategy_title=escape(pair[0].name),
            benchmark_title=escape(pair[1].name),
            match_dates=False,  # matching drops the sessions before the policy's first trade
        )
    text = _FETCHES_OR_FAILS.sub("", unfinished.read_text(encoding="utf-8"))
    unfinished.unlink()
    return write(path, text)


def _quantstats_html() -> Callable[..., None]:
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # one line for every text without Arial
    from quantstats.reports import html  # noqa: PLC0415  (five seconds and 200 MB)

    function: Callable[..., None] = html
    return function
