"""A user's files: every shape that is read gives the same bars, and what cannot be read is named."""

from __future__ import annotations

import gzip
import logging
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bokeh_sampledata.stocks import data as published

from data_pipeline.errors import BarsError, ConfigError, UnknownSymbolError
from data_pipeline.intraday import resample
from data_pipeline.schema import checked
from data_pipeline.sessions import bells_of, schedule
from data_pipeline.sources.columns import FilesConfig
from data_pipeline.sources.files import FileBars
from planted import BROKEN, three_bars
from ticks import ticks

CLOSE_ONLY = FilesConfig(close_only=True, assumed_volume=1e6)


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    else:
        getattr(frame, f"write_{path.suffix[1:]}")(path)


def _csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def _day(text: str) -> str:
    return f"{text},10,11,9,10.5,100"


HEADER = "Date,Open,High,Low,Close,Volume"


def _per_symbol(bars: pl.DataFrame, root: Path, name: str) -> None:
    for (symbol,), rows in bars.group_by("symbol"):
        _write(rows.drop("symbol"), root / name.format(symbol))


def _per_year(bars: pl.DataFrame, root: Path, name: str) -> None:
    for (year,), rows in bars.group_by(pl.col("session").dt.year()):
        _write(rows, root / name.format(year))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_file_bars_read_back_what_was_written(tmp_path, suffix):
    _write(three_bars(), tmp_path / f"bars.{suffix}")
    assert FileBars(tmp_path / f"bars.{suffix}").fetch().equals(checked(three_bars(), "mine"))


@pytest.mark.parametrize(
    ("split_up", "name"),
    [
        (_per_symbol, "{}.csv"),
        (_per_symbol, "{}.csv.gz"),
        (_per_symbol, "deep/er/{}.parquet"),
        (_per_symbol, "symbol={}/part-0.parquet"),
        (_per_symbol, "1Day/symbol={}/part-0.csv"),
        (_per_year, "{}.parquet"),
        (_per_year, "year={}/bars.csv"),
    ],
)
def test_folder_of_any_shape_gives_the_same_bars_whole_and_in_part(tmp_path, bars, split_up, name):
    split_up(bars, tmp_path, name)
    source = FileBars(tmp_path)
    assert source.fetch().equals(bars)
    part = source.fetch(["IBM", "FB"], date(2012, 5, 1), date(2012, 6, 1))
    assert part.equals(
        bars.filter(
            pl.col("symbol").is_in(["IBM", "FB"])
            & (pl.col("session").dt.month() == 5)
            & (pl.col("session").dt.year() == 2012)
            | (pl.col("session") == date(2012, 6, 1)) & pl.col("symbol").is_in(["IBM", "FB"])
        )
    )
    with pytest.raises(UnknownSymbolError, match=r"no bars for XYZ; it holds AAPL, FB, GOOG, IBM, MSFT"):
        source.fetch(["IBM", "XYZ"])


def test_folder_symbol_without_bars_between_the_dates_is_known_all_the_same(tmp_path, bars):
    _per_year(bars, tmp_path, "{}.parquet")
    part = FileBars(tmp_path).fetch(["IBM", "FB"], date(2001, 1, 1), date(2001, 2, 1))
    assert part["symbol"].unique().to_list() == ["IBM"]


def test_files_with_usual_names_and_an_adjusted_close_give_the_bundled_history(tmp_path, bars):
    names = {name: name.title() for name in published.columns} | {"adj_close": "Adj Close"}
    published.rename(columns=names).to_csv(tmp_path / "stocks.csv", index=False)
    source = FileBars(tmp_path / "stocks.csv")
    assert source.fetch().equals(bars)
    assert source.provenance()["adjustment"] == "raw, actions derived from adj_close"
    start = date(2005, 2, 28)  # the session of a split of AAPL
    part = source.fetch(["AAPL"], start, start)
    assert part.equals(bars.filter((pl.col("symbol") == "AAPL") & (pl.col("session") == start)))


def test_declared_actions_win_over_an_adjusted_close(tmp_path):
    _write(three_bars(dividend=[0.0, 0.5, 0.0], adj_close=[1.0, 2.0, 3.0]), tmp_path / "a.csv")
    bars = FileBars(tmp_path / "a.csv").fetch()
    assert bars["dividend"].to_list() == [0.0, 0.5, 0.0]
    assert bars["split"].to_list() == [1.0] * 3


def test_columns_that_may_both_be_ours_are_refused_until_one_is_named(tmp_path):
    path = _csv(tmp_path / "A.csv", f"{HEADER},timestamp", f"{_day('2020-01-02')},2020-01-03")
    with pytest.raises(BarsError, match=r"A.csv: columns Date and timestamp may all be session; say which by columns"):
        FileBars(path).fetch()
    config = FilesConfig.of({"columns": {"session": "timestamp"}})
    assert FileBars(path, config).fetch()["session"].to_list() == [date(2020, 1, 3)]


def test_columns_named_in_the_settings_are_taken(tmp_path):
    path = _csv(tmp_path / "x.csv", "when;what;O;H;L;Last;Close;Qty", "2020-01-02;Z;1;3;1;2;9;5")
    columns = {"session": "when", "symbol": "what", "open": "O", "high": "H", "low": "L", "close": "Last"}
    config = FilesConfig.of({"columns": {**columns, "volume": "Qty"}, "separator": ";"})
    row = FileBars(path, config).fetch().row(0, named=True)
    assert (row["symbol"], row["close"], row["volume"]) == ("Z", 2.0, 5.0)


def test_column_named_in_the_settings_but_absent_is_refused(tmp_path):
    path = _csv(tmp_path / "A.csv", HEADER, _day("2020-01-02"))
    with pytest.raises(
        BarsError, match=r"column 'Last', named as close, is not there \(found: Date, Open.*columns.close"
    ):
        FileBars(path, FilesConfig.of({"columns": {"close": "Last"}})).fetch()


def test_setting_for_a_column_that_we_do_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"columns.price"):
        FilesConfig.of({"columns": {"price": "Last"}})


def test_file_without_a_column_names_it_and_the_setting(tmp_path):
    path = _csv(tmp_path / "A.csv", "Date,Open,High,Low,Close", "2020-01-02,1,1,1,1")
    with pytest.raises(BarsError, match=r"A.csv: column volume missing \(found: Date.*columns.volume.*close_only"):
        FileBars(path).fetch()


@pytest.mark.parametrize(
    ("text", "settings", "session"),
    [
        ("2020-01-02", {}, date(2020, 1, 2)),
        ("2020-01-02T16:00", {}, date(2020, 1, 2)),
        ("2020-01-02 00:00:00", {}, date(2020, 1, 2)),
        ("2020-01-02T05:00:00Z", {}, date(2020, 1, 2)),
        ("2020-01-03 04:30:00+00:00", {}, date(2020, 1, 2)),
        ("2020-01-03 04:30:00.000+00:00", {"timezone": "UTC"}, date(2020, 1, 3)),
        ("01/02/2020", {"date_format": "%m/%d/%Y"}, date(2020, 1, 2)),
        ("01/02/2020", {"date_format": "%d/%m/%Y"}, date(2020, 2, 1)),
        ("1577944800", {"date_format": "epoch_s"}, date(2020, 1, 2)),
        ("1577944800000", {"date_format": "epoch_ms"}, date(2020, 1, 2)),
    ],
)
def test_dates_of_a_csv_are_read_as_the_settings_say(tmp_path, text, settings, session):
    path = _csv(tmp_path / "A.csv", HEADER, _day(text))
    assert FileBars(path, FilesConfig.of(settings)).fetch()["session"].to_list() == [session]


@pytest.mark.parametrize(
    ("column", "settings", "session"),
    [
        (pl.Series([date(2020, 1, 2)]), {}, date(2020, 1, 2)),
        (pl.Series(["2020-01-02T05:00"]).str.to_datetime(time_unit="ns", time_zone="UTC"), {}, date(2020, 1, 2)),
        (pl.Series(["2020-01-02T00:00"]).str.to_datetime(time_unit="ms"), {}, date(2020, 1, 2)),
        (pl.Series([1577944800000000000]), {"date_format": "epoch_ns"}, date(2020, 1, 2)),
    ],
)
def test_dates_of_a_parquet_file_are_read_by_their_type(tmp_path, column, settings, session):
    frame = three_bars().head(1).with_columns(session=column, volume=pl.Series([7], dtype=pl.Int32))
    _write(frame, tmp_path / "a.parquet")
    assert FileBars(tmp_path / "a.parquet", FilesConfig.of(settings)).fetch()["session"].to_list() == [session]


@pytest.mark.parametrize("text", ["01/02/2020", "20200102", "2 Jan 2020", "2020-1-2", "1577944800"])
def test_date_that_is_not_iso_is_refused_never_guessed(tmp_path, text):
    path = _csv(tmp_path / "A.csv", HEADER, _day(text))
    with pytest.raises(BarsError, match=rf"A.csv: column 'Date' holds '{text}'.*date_format"):
        FileBars(path).fetch()


def test_numbers_that_may_be_times_are_refused_until_the_unit_is_said(tmp_path):
    _write(three_bars(session=[1, 2, 3]), tmp_path / "a.parquet")
    with pytest.raises(BarsError, match=r"a.parquet: column 'session' is Int64, which is no time.*epoch_s"):
        FileBars(tmp_path / "a.parquet").fetch()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2020-01-03,10,11,9,n/a,100", r"n/a.*Close"),
        ("03.01.2020,10,11,9,10,100", r"Date.*03.01.2020"),
    ],
)
def test_value_that_cannot_be_read_names_the_file_among_many_and_the_column(tmp_path, line, words):
    for name in ("A", "B", "C"):
        _csv(tmp_path / f"{name}.csv", HEADER, _day("2020-01-02"))
    _csv(tmp_path / "B.csv", HEADER, _day("2020-01-02"), line)
    with pytest.raises(BarsError, match=rf"B.csv: cannot be read: .*{words}") as caught:
        FileBars(tmp_path).fetch()
    assert "\n" not in str(caught.value)
    assert FileBars(tmp_path).fetch(["A", "C"])["symbol"].to_list() == ["A", "C"]


def test_folder_whose_files_differ_in_columns_and_dates_is_read(tmp_path):
    _csv(tmp_path / "A.csv", HEADER, _day("2020-01-02"))
    _csv(tmp_path / "B.csv", HEADER, _day("2020-01-02T00:00:00Z"))
    _csv(tmp_path / "C.csv", f"Name,{HEADER}", f"x,{_day('2020-01-02')}")
    _write(three_bars(symbol=["D"] * 3), tmp_path / "rest.parquet")
    assert FileBars(tmp_path).fetch()["symbol"].to_list() == ["A", "B", "C", "D", "D", "D"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, r"does not exist; give"),
        (lambda p: p.mkdir(), r"holds no files; give"),
        (lambda p: _csv(p / "A.xlsx", "x"), r"A.xlsx: cannot read .xlsx; give .parquet"),
        (lambda p: _csv(p / "A", "x"), r"A: cannot read a name without suffix"),
        (lambda p: _csv(p / "A.parquet", "x"), r"A.parquet: cannot be read: .*Parquet"),
        (lambda p: (p.mkdir(), (p / "A.csv").touch()), r"A.csv: cannot be read: empty"),
        (lambda p: _csv(p / "1Hour" / "A.csv", "x"), r"holds 1Hour, not 1Day"),
    ],
)
def test_path_that_cannot_be_read_is_refused_with_what_to_give(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises((BarsError, ConfigError), match=words):
        FileBars(tmp_path / "data").fetch()


def test_folder_with_names_that_start_with_a_dot_or_underscore_leaves_them_alone(tmp_path):
    _csv(tmp_path / "A.csv", HEADER, _day("2020-01-02"))
    _csv(tmp_path / "_SUCCESS", "")
    _csv(tmp_path / ".cache" / "x.tmp", "")
    assert FileBars(tmp_path).fetch().height == 1
    assert FileBars(tmp_path).provenance()["files"] == "1"


def test_file_whose_rows_go_back_in_time_is_named(tmp_path):
    _csv(tmp_path / "A.csv", HEADER, _day("2020-01-02"))
    _csv(tmp_path / "B.csv", HEADER, _day("2020-01-03"), _day("2020-01-02"))
    with pytest.raises(BarsError, match=r"B.csv: session earlier than the row before it at B 2020-01-02.*sort"):
        FileBars(tmp_path).fetch()


def test_session_that_two_files_hold_is_refused(tmp_path):
    for name in ("one", "two"):
        _write(three_bars(), tmp_path / f"{name}.parquet")
    with pytest.raises(BarsError, match=r"duplicate session at A 2020-01-02"):
        FileBars(tmp_path).fetch()


def test_close_only_bars_are_refused_without_the_setting_and_told_with_it(tmp_path, caplog):
    path = _csv(tmp_path / "A.csv", "Date,Close", "2020-01-02,10", "2020-01-03,11")
    with pytest.raises(BarsError, match="close_only"):
        FileBars(path).fetch()
    source = FileBars(path, CLOSE_ONLY)
    with caplog.at_level(logging.WARNING):
        bars = source.fetch()
    assert "no open fills" in caplog.text
    assert "no ranges, no volume" in source.provenance()["lost"]
    assert bars.select("open", "high", "low", "close", "volume").rows() == [(10.0,) * 4 + (1e6,), (11.0,) * 4 + (1e6,)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"close_only": True}, "assumed_volume"),
        ({"assumed_volume": 1.0}, "close_only"),
        ({"layout": "wide"}, "close_only"),
        ({"timezone": "Mars"}, "timezone"),
    ],
)
def test_settings_of_files_that_contradict_themselves_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        FilesConfig.of(settings)


def test_wide_closes_of_skfolio_are_read_as_they_are():
    datasets = pytest.importorskip("skfolio.datasets")
    path = Path(datasets.__file__).parent / "data" / "sp500_dataset.csv.gz"
    wide = datasets.load_sp500_dataset()
    bars = FileBars(path, CLOSE_ONLY.model_copy(update={"layout": "wide"})).fetch()
    assert bars["symbol"].unique().sort().to_list() == sorted(wide.columns)
    for symbol, rows in bars.group_by("symbol"):
        np.testing.assert_array_equal(rows["close"].to_numpy(), wide[symbol[0]].to_numpy())
        assert (rows["session"].to_numpy() == wide.index.to_numpy().astype("datetime64[D]")).all()


def test_wide_cell_that_is_empty_is_no_bar(tmp_path):
    path = _csv(tmp_path / "w.csv", "Date,X,Y", "2020-01-02,1,", "2020-01-03,2,5")
    bars = FileBars(path, CLOSE_ONLY.model_copy(update={"layout": "wide"})).fetch()
    assert bars.select("symbol", "close").rows() == [("X", 1.0), ("X", 2.0), ("Y", 5.0)]


def test_provenance_follows_content_names_and_settings(tmp_path):
    told = []
    for folder, name, close in (("a", "A", "10.5"), ("b", "A", "10.5"), ("c", "A", "10.6"), ("d", "B", "10.5")):
        _csv(tmp_path / folder / f"{name}.csv", HEADER, f"2020-01-02,10,11,9,{close},100")
        told.append(FileBars(tmp_path / folder).provenance()["content_sha256"])
    assert told[0] == told[1]
    assert len(set(told)) == 3
    config = FilesConfig(timezone="UTC")
    assert FileBars(tmp_path / "a", config).provenance()["settings"] == '{"timezone":"UTC"}'


@pytest.fixture(scope="module")
def five_minutes() -> pl.DataFrame:
    """Two symbols around a half day and around the clocks' going back."""
    weeks = [(date(2024, 11, 1), date(2024, 11, 5)), (date(2024, 11, 27), date(2024, 12, 2))]
    return pl.concat([ticks(("AAPL", "IBM"), *week) for week in weeks]).sort("symbol", "end")


def _started(bars: pl.DataFrame, minutes: int) -> pl.DataFrame:
    """The same bars labelled by their start, in local time that names no zone."""
    opening = bells_of(bars["session"])["open"]
    length = pl.duration(minutes=minutes)
    # The last bar of a session may be shorter: its start is on the grid that counts from the opening bell.
    steps = ((bars["end"] - opening).dt.total_minutes() - 1) // minutes
    start = opening + steps * pl.select(length).item()
    return bars.select(
        "symbol",
        start.dt.convert_time_zone("America/New_York").dt.replace_time_zone(None).alias("time"),
        "open",
        "high",
        "low",
        "close",
        "volume",
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("timeframe", "minutes"), [("5Min", 5), ("1Hour", 60)])
def test_intraday_bars_labelled_by_start_or_end_are_the_same_bars(tmp_path, five_minutes, suffix, timeframe, minutes):
    bars = five_minutes if minutes == 5 else resample(five_minutes, minutes)
    _write(bars.drop("session"), tmp_path / "ends" / f"x.{suffix}")
    _write(_started(bars, minutes), tmp_path / "starts" / f"x.{suffix}")
    ends = FileBars(tmp_path / "ends", FilesConfig(labels="end")).fetch(timeframe=timeframe)
    starts = FileBars(tmp_path / "starts", FilesConfig(labels="start")).fetch(timeframe=timeframe)
    assert ends.equals(bars.select(ends.columns))
    assert starts.equals(ends)
    day = date(2024, 11, 29)
    half = FileBars(tmp_path / "ends", FilesConfig(labels="end")).fetch(["IBM"], day, day, timeframe)
    assert half.equals(ends.filter((pl.col("session") == day) & (pl.col("symbol") == "IBM")))
    assert half.height == (42 if minutes == 5 else 4)


def test_intraday_sessions_that_lie_in_two_days_of_utc_are_found_whole(tmp_path):
    day = date(2024, 11, 5)  # Sydney opens at 23:00 UTC of the day before
    bells = schedule(day, day, "XASX")
    starts = pl.datetime_range(bells["open"][0], bells["close"][0], "1h", closed="left", eager=True)
    assert starts[0].date() < day
    prices = {name: pl.lit(1.0) for name in ("open", "high", "low", "close", "volume")}
    _write(pl.DataFrame({"end": starts}).with_columns(**prices), tmp_path / "BHP.csv")
    bars = FileBars(tmp_path, FilesConfig(labels="start"), "XASX").fetch(None, day, day, "1Hour")
    assert bars.height == len(starts) == 6


def test_intraday_bars_without_a_word_on_labels_are_refused(tmp_path, five_minutes):
    _write(five_minutes, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"5Min bars need labels: start or labels: end"):
        FileBars(tmp_path / "x.parquet").fetch(timeframe="5Min")


def test_intraday_bars_with_the_wrong_word_on_labels_are_refused(tmp_path, five_minutes):
    _write(_started(five_minutes, 5), tmp_path / "x.parquet")
    with pytest.raises(BarsError, match=r"AAPL has a bar outside the regular session at 2024-11-01 13:30.*labels"):
        FileBars(tmp_path / "x.parquet", FilesConfig(labels="end")).fetch(timeframe="5Min")


def test_intraday_bars_of_extended_hours_are_dropped_if_so_set(tmp_path, five_minutes):
    early = five_minutes.head(3).with_columns(pl.col("end") - pl.duration(hours=2))
    _write(pl.concat([early, five_minutes]).sort("symbol", "end"), tmp_path / "x.parquet")
    with pytest.raises(BarsError, match=r"outside the regular session at 2024-11-01 11:35.* and 2 more; set extended"):
        FileBars(tmp_path / "x.parquet", FilesConfig(labels="end")).fetch(timeframe="5Min")
    config = FilesConfig(labels="end", extended_hours="drop")
    assert FileBars(tmp_path / "x.parquet", config).fetch(timeframe="5Min").equals(five_minutes)


def test_intraday_bars_asked_of_daily_files_are_refused(tmp_path):
    _write(three_bars(), tmp_path / "x.parquet")
    config = FilesConfig.of({"labels": "end", "columns": {"end": "session"}})
    with pytest.raises(BarsError, match=r"column 'session' has days only, 1Hour bars need the time of day"):
        FileBars(tmp_path / "x.parquet", config).fetch(timeframe="1Hour")


def test_folder_with_one_folder_per_timeframe_gives_each(tmp_path, five_minutes):
    _write(five_minutes, tmp_path / "5Min" / "x.parquet")
    assert FileBars(tmp_path).provenance()["adjustment"] == "as given, no actions"
    _write(three_bars(split=[1.0] * 3), tmp_path / "1Day" / "x.parquet")
    assert FileBars(tmp_path).provenance()["adjustment"] == "raw, actions as given"
    source = FileBars(tmp_path, FilesConfig(labels="end"))
    assert source.fetch().height == 3
    assert source.fetch(timeframe="5Min").equals(five_minutes)
    with pytest.raises(ConfigError, match="holds 1Day, 5Min, not 1Hour"):
        source.fetch(timeframe="1Hour")


@pytest.mark.parametrize("defect", ["NaN", "duplicate", "unsorted", "negative price"])
def test_fetch_of_a_broken_file_exits_2_with_one_line_and_writes_nothing(tmp_path, command, defect):
    path = tmp_path / "bars.parquet"
    _, changes, words = BROKEN[defect]
    three_bars(**changes).write_parquet(path)
    done = command("swing-data", "fetch", "--set", f"source={path}", "--set", f"store={tmp_path / 'store'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "store").exists()
