"""A user's files as rows with our column names and types: what their columns are called and mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import Field, model_validator

from data_pipeline.config import Config
from data_pipeline.errors import BarsError
from data_pipeline.schema import NO_ACTION, PRICES, Timeframe
from data_pipeline.sessions import INSTANT

Ours = Literal["symbol", "session", "end", "open", "high", "low", "close", "volume", "split", "dividend", "adj_close"]
ALIASES: Mapping[Ours, tuple[str, ...]] = {
    "symbol": ("symbol", "ticker"),
    "session": ("session", "date", "datetime", "timestamp", "time"),
    "end": ("end", "date", "datetime", "timestamp", "time"),
    "open": ("open",),
    "high": ("high",),
    "low": ("low",),
    "close": ("close",),
    "volume": ("volume",),
    "split": ("split",),
    "dividend": ("dividend",),
    "adj_close": ("adjclose", "adjustedclose"),
}
EPOCHS: Mapping[str, Literal["ns", "us", "ms", "s"]] = {
    "epoch_s": "s",
    "epoch_ms": "ms",
    "epoch_us": "us",
    "epoch_ns": "ns",
}
_NOT_CLOSE: tuple[Ours, ...] = ("open", "high", "low", "volume")
_FILE = "\0file"  # no column of a user has this name
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:(?P<t>[T ])\d\d:\d\d(?P<s>:\d\d(?:\.\d+)?)?(?P<zone>Z|[+-]\d\d:?\d\d)?)?")


class FilesConfig(Config):
    """What the columns of a user's files are called and mean."""

    columns: dict[Ours, str] = Field(default_factory=dict)
    """Our name to yours, such as {session: Date, close: Last}; what is left out is found by its usual names."""
    layout: Literal["long", "wide"] = "long"
    """long: a row per symbol and bar; wide: a row per session and a column per symbol (with close_only)."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Separator of CSV files."""
    date_format: str | None = None
    """Such as %m/%d/%Y, %d.%m.%Y %H:%M, epoch_s, epoch_ms, epoch_us or epoch_ns; none: ISO 8601 only."""
    timezone: str = "America/New_York"
    """Zone of times that name none, and the one in which the time stamp of a daily bar becomes a date."""
    labels: Literal["start", "end"] | None = None
    """What the time of an intraday bar labels. There is no default: a wrong one lets bars be seen too early."""
    extended_hours: Literal["refuse", "drop"] = "refuse"
    """What to do about intraday bars outside the regular session."""
    close_only: bool = False
    """Take the close, also for open, high and low; needs assumed_volume."""
    assumed_volume: Annotated[float, Field(gt=0)] | None = None
    """Shares per session, with close_only."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.close_only != (self.assumed_volume is not None):
            raise ValueError("close_only and assumed_volume go together: set both or neither")
        if self.layout == "wide" and not self.close_only:
            raise ValueError("layout wide holds one value per symbol and session: set close_only and assumed_volume")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"timezone {self.timezone!r} is unknown; give a name such as America/New_York") from error
        return self


class Header(NamedTuple):
    """The names and types that a file itself gives its columns."""

    path: Path
    types: Mapping[str, pl.DataType]

    def found(self, ours: Ours, config: FilesConfig) -> str | None:
        """Returns the file's name of one of our columns, None where it has none.

        Raises:
            BarsError: The settings name a column that is not there, or several have usual names of it.
        """
        if (named := config.columns.get(ours)) is not None:
            if named not in self.types:
                raise BarsError(
                    f"{self.path}: column {named!r}, named as {ours}, is not there (found: {', '.join(self.types)}); "
                    f"mend columns.{ours} in the settings of the source"
                )
            return named
        free = [name for name in self.types if name not in config.columns.values()]
        usual = [name for name in free if re.sub(r"[\s_-]", "", name).lower() in ALIASES[ours]]
        if len(usual) > 1:
            raise BarsError(
                f"{self.path}: columns {' and '.join(usual)} may all be {ours}; "
                f"say which by columns.{ours} in the settings of the source"
            )
        return usual[0] if usual else None

    def required(self, ours: Ours, config: FilesConfig) -> str:
        """Returns the file's name of one of our columns.

        Raises:
            BarsError: There is none; also as `found`.
        """
        theirs = self.found(ours, config)
        if theirs is not None:
            return theirs
        closes = ours in _NOT_CLOSE and self.found("close", config) is not None
        raise BarsError(
            f"{self.path}: column {ours} missing (found: {', '.join(self.types)}); "
            f"name yours by columns.{ours} in the settings of the source"
            + (", or set close_only and assumed_volume to do with closes" if closes else "")
        )

    def actions(self, config: FilesConfig) -> tuple[Ours, ...]:
        """Returns our columns that corporate actions are read from: declared ones win over adj_close; may be none."""
        declared: tuple[Ours, ...] = ("split", "dividend")
        held = tuple(ours for ours in declared if self.found(ours, config))
        return held or (("adj_close",) if self.found("adj_close", config) else ())


def header_of(path: Path, config: FilesConfig) -> Header:
    """Returns the header of a file.

    Raises:
        BarsError: The file cannot be read.
    """
    try:
        types = _scan([path], config).drop(_FILE).collect_schema()
        return Header(path, types)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> BarsError:
    """Returns the error that tells that a file, or a value in it, could not be read."""
    return BarsError(f"{path}: cannot be read: {str(error).strip().splitlines()[0]}; mend the file or its settings")


def rows_of(header: Header, files: Mapping[Path, str], config: FilesConfig, timeframe: Timeframe) -> pl.LazyFrame:
    """Returns the rows of files in their order, not yet read, with our names and types.

    The columns are symbol, session (1Day) or end (the instant of the label, whatever it labels), OHLC, volume
    and, with 1Day, either adj_close or split and dividend.

    Args:
        header: That all of the files have.
        files: Each file and the symbol it stands for, which counts if it has no symbol column.
        config: What its columns mean.
        timeframe: Of its bars.

    Raises:
        BarsError: A column is missing, not to be told from another, or of a type that does not fit.
    """
    time = _time(header, config, timeframe)
    inside = header.found("symbol", config)
    paths = list(files)
    if config.layout == "wide":
        rows = _melted(header, paths, time, config)
    else:
        taken: tuple[Ours, ...] = ("close",) if config.close_only else (*_NOT_CLOSE, "close")
        taken += header.actions(config) if timeframe == "1Day" else ()
        theirs = {ours: header.required(ours, config) for ours in taken}
        named = pl.col(_FILE).replace_strict({str(path): symbol for path, symbol in files.items()})
        rows = _scan(paths, config, tuple(theirs.values())).select(
            (pl.col(inside).cast(pl.String) if inside else named).alias("symbol"),
            time,
            *(pl.col(name).cast(pl.Float64).alias(ours) for ours, name in theirs.items()),
        )
    if timeframe == "1Day" and "adj_close" not in header.actions(config):
        rows = rows.with_columns(pl.lit(v).alias(k) for k, v in NO_ACTION.items() if k not in header.actions(config))
    if config.close_only:
        # A fill at this open is one at the close of the next session: later than a real open, never earlier.
        rows = rows.with_columns(pl.col("close").alias(n) for n in PRICES if n != "close")
        rows = rows.with_columns(pl.lit(config.assumed_volume).alias("volume"))
    return rows


def _scan(paths: list[Path], config: FilesConfig, numbers: Sequence[str] = ()) -> pl.LazyFrame:
    """Returns the rows of files of one kind and header, CSV as text but for `numbers`, with the file of each row."""
    if paths[0].suffix == ".parquet":
        return pl.scan_parquet(paths, hive_partitioning=False, include_file_paths=_FILE)
    return pl.scan_csv(
        paths,
        separator=config.separator,
        infer_schema=False,
        schema_overrides=dict.fromkeys(numbers, pl.Float64()),
        include_file_paths=_FILE,
    )


def _melted(header: Header, paths: list[Path], time: pl.Expr, config: FilesConfig) -> pl.LazyFrame:
    """Returns symbol, session and close of a wide file, one symbol after the other; an empty cell is no bar."""
    dates = header.required("session", config)
    symbols = [name for name in header.types if name != dates]
    rows = _scan(paths, config, symbols).select(time, pl.col(symbols).cast(pl.Float64))
    return rows.unpivot(symbols, index="session", variable_name="symbol", value_name="close").drop_nulls("close")


def _time(header: Header, config: FilesConfig, timeframe: Timeframe) -> pl.Expr:
    """Returns the expression of the column session or end."""
    name = header.required("session" if timeframe == "1Day" else "end", config)
    column, kind = _parsed(header, name, config)
    zone = getattr(kind, "time_zone", None)
    if timeframe == "1Day":
        local = column.dt.convert_time_zone(config.timezone) if zone else column
        return local.dt.date().alias("session")
    if kind == pl.Date():
        raise BarsError(
            f"{header.path}: column {name!r} has days only, {timeframe} bars need the time of day; "
            "ask for 1Day or name another column by columns.end in the settings of the source"
        )
    instant = column if zone else column.dt.replace_time_zone(config.timezone)
    return instant.dt.convert_time_zone("UTC").dt.cast_time_unit("us").alias("end")


def _parsed(header: Header, name: str, config: FilesConfig) -> tuple[pl.Expr, pl.DataType]:
    """Returns the expression of a time column as Date or Datetime, and which of them it is."""
    column, kind, pattern = pl.col(name), header.types[name], config.date_format
    if pattern is not None and pattern in EPOCHS and (kind.is_integer() or kind == pl.String()):
        return pl.from_epoch(column.cast(pl.Int64), EPOCHS[pattern]).dt.replace_time_zone("UTC"), INSTANT
    if kind == pl.String():
        pattern = pattern or _iso_pattern(header, name, config)
        wanted = INSTANT if "%z" in pattern or "%#z" in pattern else pl.Datetime("us") if "%H" in pattern else pl.Date()
        return column.str.strptime(wanted, pattern), wanted
    if kind.is_temporal() and kind != pl.Time():
        return column, kind
    raise BarsError(
        f"{header.path}: column {name!r} is {kind}, which is no time; give dates, or say by date_format in the "
        f"settings of the source what the numbers count ({', '.join(EPOCHS)})"
    )


def _iso_pattern(header: Header, name: str, config: FilesConfig) -> str:
    """Returns the pattern of the first value, so that a value of another kind further down is refused, not guessed."""
    try:
        text = _scan([header.path], config).select(pl.col(name).drop_nulls().first()).collect().item()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise unreadable(header.path, error) from error
    match = _ISO.fullmatch(text or "2000-01-01")
    if match is None:
        raise BarsError(
            f"{header.path}: column {name!r} holds {text!r}, which is not an ISO 8601 date; "
            "say by date_format in the settings of the source how to read it, such as %m/%d/%Y"
        )
    clock = f"{match['t']}%H:%M{':%S%.f' if match['s'] else ''}" if match["t"] else ""
    return f"%Y-%m-%d{clock}{'%#z' if match['zone'] else ''}"
