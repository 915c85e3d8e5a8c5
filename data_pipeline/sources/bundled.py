"""Daily history that ships in a package, so that everything runs with no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from data_pipeline.errors import ConfigError
from data_pipeline.schema import Timeframe, checked, selected
from data_pipeline.sources.actions import with_actions


class BundledBars:
    """Daily history of AAPL, FB, GOOG, IBM and MSFT, 2000-03-01 to 2013-03-01, that ships in a package.

    `bokeh_sampledata` holds raw OHLCV and a total-return adjusted close. Splits and dividends are
    recovered from the jumps of adjusted over raw close (`sources.actions`). All five companies survived:
    compare only with baselines on the same set.
    """

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """See `BarSource.fetch`."""
        if timeframe != "1Day":
            raise ConfigError(f"source 'bundled' holds daily bars only, not {timeframe}; choose 'alpaca' or files")
        try:
            from bokeh_sampledata.stocks import data  # noqa: PLC0415  (an optional package)
        except ImportError as error:
            raise ConfigError(
                "source 'bundled' needs the package bokeh_sampledata: pip install 'swing-rl[bundled]'"
            ) from error
        frame = pl.from_pandas(data).rename({"ticker": "symbol", "date": "session"})
        frame = frame.with_columns(pl.col("session").cast(pl.Date)).sort("symbol", "session")
        bars = checked(with_actions(frame, "bundled history"), "bundled history")
        return selected(bars, symbols, start, end, "bundled")

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`."""
        from importlib.metadata import version  # noqa: PLC0415

        return {
            "source": "bundled",
            "feed": "bokeh_sampledata.stocks",
            "adjustment": "raw, actions derived from adj_close",
            "version": version("bokeh_sampledata"),
        }
