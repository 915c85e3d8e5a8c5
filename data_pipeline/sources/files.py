"""A user's own Parquet and CSV: one file, or a folder with all that lies below it.

Shapes of a folder, also mixed:

    anything.parquet                a symbol column inside
    symbol=AAPL/anything.parquet    the symbol in the name of a folder
    AAPL.csv                        neither: the symbol is the name of the file
    1Day/… 1Hour/… 5Min/…           a folder per timeframe; without them every file is read as the one asked for

Names that start with a dot or an underscore are left alone; what else cannot be read is refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple, get_args
from urllib.parse import unquote

import polars as pl

from data_pipeline.config import canonical_json
from data_pipeline.errors import BarsError, ConfigError, UnknownSymbolError
from data_pipeline.intraday import MINUTES, checked_intraday
from data_pipeline.schema import Timeframe, checked, in_order, order_checks, refuse, selected
from data_pipeline.sessions import bells_of, sessions_of
from data_pipeline.sources.actions import with_actions
from data_pipeline.sources.columns import FilesConfig, Header, header_of, rows_of, unreadable

SUFFIXES = (".parquet", ".csv", ".csv.gz")
LOST = "no open fills (the open is the close), no ranges, no volume"
TIMEFRAMES: tuple[Timeframe, ...] = get_args(Timeframe)
_ADJUSTMENTS = {(): "as given, no actions", ("adj_close",): "raw, actions derived from adj_close"}

log = logging.getLogger(__name__)


class _Alike(NamedTuple):
    """Files with one header, read in one go; `files` maps each to the symbol that its place says."""

    header: Header
    files: dict[Path, str]

    def has_symbols(self, config: FilesConfig) -> bool:
        """Returns True if the symbols stand inside the files."""
        return config.layout == "wide" or self.header.found("symbol", config) is not None


class FileBars:
    """A Parquet or CSV file, or a folder of them. See the module."""

    def __init__(self, path: Path, config: FilesConfig | None = None, exchange: str = "XNYS") -> None:
        """Names the files; nothing is read yet.

        Args:
            path: A file or a folder.
            config: What its columns are called and mean; None: the usual names, ISO dates.
            exchange: Whose bells bound intraday bars.
        """
        self.path, self.config, self.exchange = path, config or FilesConfig(), exchange

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """See `BarSource.fetch`."""
        bars = self.unchecked(symbols, start, end, timeframe)
        if timeframe == "1Day":
            return checked(bars, str(self.path))
        return checked_intraday(bars, MINUTES[timeframe], str(self.path), self.exchange)

    def unchecked(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """Returns what `fetch` goes on to check, so that `quality.findings` can tell every defect, not the first.

        Raises:
            UnknownSymbolError: A symbol that the files do not hold.
            BarsError: A file cannot be read or is not in order, or nothing is left.
        """
        groups = self._groups(timeframe)
        asked = groups if symbols is None else [kept for group in groups if (kept := self._kept(group, symbols)).files]
        frames = [self._read(group, symbols, start, end, timeframe) for group in asked]
        if symbols is not None:
            self._require(set(symbols).difference(*(frame["symbol"].unique() for frame in frames)), groups, timeframe)
        if not frames or (bars := pl.concat(frames, how="diagonal")).is_empty():
            raise BarsError(f"{self.path}: no bars between {start} and {end}; ask for other dates")
        bars = self._sorted(asked, bars, timeframe)
        if timeframe != "1Day":
            bars = self._in_sessions(bars, MINUTES[timeframe])
        elif "adj_close" in bars.columns:
            bars = with_actions(bars, str(self.path))
        if self.config.close_only:
            log.warning("%s: close only: %s; volume assumed %s", self.path, LOST, self.config.assumed_volume)
        return selected(bars, None, start, end, str(self.path))

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`; `content_sha256` covers the content and names of all files."""
        paths = _files(self.path)
        content = hashlib.sha256()
        for path in paths:
            with path.open("rb") as stream:
                content.update(f"{path.relative_to(self.path)}\n".encode())
                content.update(hashlib.file_digest(stream, "sha256").digest())
        return {
            "source": "files",
            "feed": self.path.name,
            "adjustment": self._adjustment(),
            "version": "1",
            "files": str(len(paths)),
            "content_sha256": content.hexdigest(),
            "settings": canonical_json(self.config.model_dump(mode="json", exclude_defaults=True)).decode(),
            **({"lost": LOST} if self.config.close_only else {}),
        }

    def _adjustment(self) -> str:
        daily = self.path / "1Day"
        paths = _files(daily if daily.is_dir() else self.path)
        held = {header_of(path, self.config).actions(self.config) for path in paths}
        return "; ".join(sorted({_ADJUSTMENTS.get(actions, "raw, actions as given") for actions in held}))

    def _folder(self, timeframe: Timeframe) -> Path:
        """Returns the folder of a timeframe; without such folders, the whole path."""
        present = [name for name in TIMEFRAMES if (self.path / name).is_dir()]
        if not present:
            return self.path
        if timeframe not in present:
            raise ConfigError(f"{self.path}: holds {', '.join(present)}, not {timeframe}; ask for what it holds")
        return self.path / timeframe

    def _groups(self, timeframe: Timeframe) -> list[_Alike]:
        if timeframe != "1Day" and (self.config.labels is None or self.config.close_only):
            raise ConfigError(
                f"{self.path}: {timeframe} bars need labels: start or labels: end in the settings of the source, "
                "and all their prices and volumes (no close_only)"
            )
        folder = self._folder(timeframe)
        groups: dict[tuple[object, ...], _Alike] = {}
        for path in _files(folder):
            header = header_of(path, self.config)
            group = groups.setdefault((path.suffix, *header.types.items()), _Alike(header, {}))
            group.files[path] = _symbol_of(path, folder)
        return list(groups.values())

    def _kept(self, group: _Alike, symbols: Sequence[str]) -> _Alike:
        """Returns the group without the files whose place says that they hold none of `symbols`."""
        if group.has_symbols(self.config):
            return group
        return group._replace(files={path: symbol for path, symbol in group.files.items() if symbol in symbols})

    def _read(
        self, group: _Alike, symbols: Sequence[str] | None, start: date | None, end: date | None, timeframe: Timeframe
    ) -> pl.DataFrame:
        """Returns the rows of a group of files, and perhaps some outside the dates."""
        rows = rows_of(group.header, group.files, self.config, timeframe)
        time = pl.col("session") if timeframe == "1Day" else pl.col("end").dt.date()
        near = timedelta(0 if timeframe == "1Day" else 1)  # a session may lie in two days of UTC
        if symbols is not None:
            rows = rows.filter(pl.col("symbol").is_in(list(symbols)))
        # What an adjusted close says of the first session follows from the one before it.
        if start is not None and "adj_close" not in group.header.actions(self.config):
            rows = rows.filter(time >= start - near)
        if end is not None:
            rows = rows.filter(time <= end + near)
        try:
            return rows.collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            if len(group.files) == 1:
                raise unreadable(group.header.path, error) from error
            # The error does not say which file it is; and files with one header may write dates in several ways.
            return pl.concat([self._read(each, symbols, start, end, timeframe) for each in _singles(group)])

    def _sorted(self, groups: list[_Alike], bars: pl.DataFrame, timeframe: Timeframe) -> pl.DataFrame:
        """Returns the bars by symbol and time; refuses a file whose own rows go back in time."""
        time = "session" if timeframe == "1Day" else "end"
        if in_order(bars, time):
            return bars
        backwards, _ = order_checks(time)
        for each in (single for group in groups for single in _singles(group)):
            refuse(self._read(each, None, None, None, timeframe), [backwards], str(each.header.path), time)
        return bars.sort("symbol", time)

    def _require(self, absent: set[str], groups: list[_Alike], timeframe: Timeframe) -> None:
        """Refuses symbols that no file holds; one without bars between the dates is merely absent."""
        if not absent:
            return
        held: set[str] = set()
        for group in groups:
            if group.has_symbols(self.config):
                rows = rows_of(group.header, group.files, self.config, timeframe)
                held.update(rows.select(pl.col("symbol").unique()).collect()["symbol"])
            else:
                held.update(group.files.values())
        if unknown := sorted(absent - held):
            raise UnknownSymbolError(
                f"{self.path}: no bars for {', '.join(unknown)}; it holds {', '.join(sorted(held))}"
            )

    def _in_sessions(self, bars: pl.DataFrame, minutes: int) -> pl.DataFrame:
        """Adds the session and turns labels into ends."""
        begin = bars["end"]
        if self.config.labels == "start":
            # A microsecond on: sessions exclude their opening instant and include their closing one.
            session = sessions_of(begin + timedelta(microseconds=1), self.exchange)
            closing = bells_of(session, self.exchange)["close"]
            bars = bars.with_columns(pl.min_horizontal(begin + timedelta(minutes=minutes), closing).alias("end"))
        else:
            session = sessions_of(begin, self.exchange)
        bars = bars.with_columns(session.alias("session"))
        outside = bars.filter(pl.col("session").is_null())
        if not outside.is_empty() and self.config.extended_hours == "refuse":
            row = outside.row(0, named=True)
            raise BarsError(
                f"{self.path}: {row['symbol']} has a bar outside the regular session at {row['end']}"
                f" and {outside.height - 1} more; set extended_hours to drop, or labels to what the times label"
            )
        return bars.filter(pl.col("session").is_not_null())


def _files(path: Path) -> list[Path]:
    """Returns the files to read, in the order of their names."""
    if not path.exists():
        raise BarsError(f"{path}: does not exist; give a Parquet or CSV file, or a folder of them")
    below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    paths = [p for p in below if not any(part.startswith((".", "_")) for part in p.relative_to(path).parts)]
    for each in paths:
        if not each.name.endswith(SUFFIXES):
            raise BarsError(f"{each}: cannot read {each.suffix or 'a name without suffix'}; give {', '.join(SUFFIXES)}")
    if not paths:
        raise BarsError(f"{path}: holds no files; give a folder with {', '.join(SUFFIXES)} below it")
    return paths


def _symbol_of(path: Path, folder: Path) -> str:
    """Returns the symbol that the place of a file says, by a folder `symbol=…` or else by its name."""
    for part in path.relative_to(folder).parts[:-1]:
        if part.startswith("symbol="):
            return unquote(part.removeprefix("symbol="))
    suffix = next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))
    return path.name.removesuffix(suffix)


def _singles(group: _Alike) -> Iterator[_Alike]:
    """Yields each file of a group by itself."""
    for path, symbol in group.files.items():
        yield _Alike(group.header._replace(path=path), {path: symbol})
