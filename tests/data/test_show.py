"""A snapshot's story as data and text, and the page of a symbol as text and as a browser shows it."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Sequence
from datetime import date
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Page
from rich.console import Console

from browser import brightness, browser, page  # noqa: F401  (fixtures)
from data_pipeline.assemble import build_panel
from data_pipeline.draw import UNITS, draw
from data_pipeline.errors import ConfigError, StoreError, UnknownSymbolError
from data_pipeline.features import FeatureSet
from data_pipeline.indicators import INDICATORS
from data_pipeline.intraday import resample, to_daily
from data_pipeline.quality import findings
from data_pipeline.sessions import sessions_between
from data_pipeline.store import Snapshot, Store
from data_pipeline.story import story, tables
from ticks import ticks

HOSTILE = "</script><script>document.title='owned'</script><b>[red]&"
PROVENANCE = {"source": "bundled", "feed": "package", "adjustment": "raw", "version": HOSTILE}
START, END = date(2004, 7, 1), date(2006, 6, 30)  # AAPL splits, IBM pays, GOOG is listed
HOLE = (date(2005, 5, 2), date(2005, 5, 20))
HALF_DAY = date(2024, 7, 3)
FEATURES = (
    *("rsi_14", "sma_50_distance", "return_5", "macd_histogram", "atr_14", "relative_volume_20"),
    *("week.return_4", "trend_regime_14", "market_return_20", "beta_60", "year_sine", "sma_200_distance"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def daily(bars: pl.DataFrame) -> pl.DataFrame:
    """Two years of the bundled history, with a hole of three weeks in IBM."""
    hole = (pl.col("symbol") == "IBM") & pl.col("session").is_between(*HOLE)
    return bars.filter(pl.col("session").is_between(START, END) & ~hole)


@pytest.fixture(scope="module")
def snapshot(store: Store, daily: pl.DataFrame) -> Snapshot:
    return store.write({"1Day": daily}, PROVENANCE)


@pytest.fixture(scope="module")
def within(store: Store) -> Snapshot:
    """Daily, hourly and 5-minute bars of a month with a half day, which S00 lacks, as S01 lacks three bars."""
    bars = ticks(("S00", "S01"), date(2024, 6, 10), date(2024, 7, 12))
    hour = resample(bars, 60)
    lacking = (pl.col("symbol") == "S00") & (pl.col("session") == HALF_DAY)
    few = (pl.col("symbol") == "S01") & (pl.int_range(pl.len()).over("symbol").is_in([5, 6, 100]))
    day = to_daily(bars).with_columns(split=1.0, dividend=0.0)
    found = {"1Day": day, "1Hour": hour.filter(~lacking), "5Min": bars.filter(~lacking & ~few)}
    return store.write(found, PROVENANCE | {"source": "ticks"})


def four_sessions(close: Sequence[float], **actions: Sequence[float]) -> pl.DataFrame:
    columns = {"split": [1.0] * 4, "dividend": [0.0] * 4} | actions
    days = [date(2024, 1, day) for day in (2, 3, 4, 5)]
    prices = {name: list(close) for name in ("open", "high", "low", "close")}
    return pl.DataFrame({"symbol": ["A"] * 4, "session": days, **prices, "volume": [1e6] * 4, **columns})


def written(told: dict[str, Any], most: int = 8) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(tables(told, most))
    return captured.get()


# ---- the story


def test_story_tells_extent_and_origin_of_the_bars(store: Store, snapshot: Snapshot, daily: pl.DataFrame) -> None:
    told = json.loads(json.dumps(story(store, snapshot.id)))
    assert told["provenance"] == PROVENANCE
    for key in ("fetched_at", "written_at", "calendar", "code"):
        assert told[key] == snapshot.manifest[key]
    extent = told["timeframes"]["1Day"]
    assert (extent["rows"], extent["first_session"], extent["last_session"]) == (daily.height, str(START), str(END))
    symbols = {row["symbol"]: row for row in extent["symbols"]}
    sessions = len(sessions_between(START, END))
    assert symbols["MSFT"] == {
        "symbol": "MSFT",
        "rows": sessions,
        "first_session": str(START),
        "last_session": str(END),
        "missing_bars": 0,
    }
    assert (symbols["IBM"]["rows"], symbols["IBM"]["missing_bars"]) == (sessions - 15, 15)
    assert (symbols["GOOG"]["first_session"], symbols["GOOG"]["missing_bars"]) == ("2004-08-19", 0)
    first, last = map(str, HOLE)
    assert extent["gaps"] == [{"symbol": "IBM", "first_session": first, "last_session": last, "sessions": 15}]


def test_story_tells_events_and_findings(store: Store, snapshot: Snapshot, daily: pl.DataFrame) -> None:
    told = story(store, snapshot.id)
    assert told["splits"] == [{"symbol": "AAPL", "session": "2005-02-28", "ratio": 2.0}]
    paid = daily.filter(pl.col("dividend") > 0)
    assert [(d["symbol"], d["session"], d["usd"]) for d in told["dividends"]] == [
        (symbol, str(session), usd) for symbol, session, usd in paid.select("symbol", "session", "dividend").rows()
    ]
    found = findings(daily)
    assert told["findings"] == {s: found.filter(severity=s).height for s in ("error", "warning", "note")}
    assert told["findings"]["error"] == 1  # the hole
    assert {"severity": "error", "check": "gap", "findings": 1, "rows": 15} in told["checks"]


def test_story_of_moves_counts_splits_and_dividends_in(store: Store) -> None:
    bars = four_sessions([100.0, 51.0, 50.0, 25.0], split=[1.0, 2.0, 1.0, 1.0], dividend=[0.0, 0.0, 1.0, 0.0])
    moves = story(store, store.write({"1Day": bars}, PROVENANCE).id)["largest_moves"]
    assert [move["session"] for move in moves] == ["2024-01-05", "2024-01-03", "2024-01-04"]
    np.testing.assert_allclose([move["return"] for move in moves], [-0.5, 0.02, 0.0], atol=1e-12)


def test_story_of_moves_agrees_with_the_panel(store: Store, snapshot: Snapshot, daily: pl.DataFrame) -> None:
    panel = build_panel(daily, FeatureSet.of(("return_1",)))
    moves = story(store, snapshot.id)["largest_moves"]
    assert len(moves) == 3 * 4
    adjusted = pl.DataFrame(panel.fields["adjusted_close"], schema=panel.symbols).fill_nan(None)
    for move in moves:
        closes = adjusted[move["symbol"]][: panel.session_index(date.fromisoformat(move["session"])) + 1].drop_nulls()
        assert move["return"] == pytest.approx(closes[-1] / closes[-2] - 1)
    largest = [abs(np.log1p(move["return"])) for move in moves]
    assert largest == sorted(largest, reverse=True)
    every = adjusted.select(pl.all().drop_nulls().log().diff().abs().max().first())
    assert largest[0] == pytest.approx(max(every.row(0)))


def test_story_within_sessions_counts_bars_of_half_days_and_missing_ones(store: Store, within: Snapshot) -> None:
    told = story(store, within.id)["timeframes"]
    gap = {"symbol": "S00", "first_session": str(HALF_DAY), "last_session": str(HALF_DAY), "sessions": 1}
    for timeframe, missing in (("1Day", (0, 0)), ("1Hour", (4, 0)), ("5Min", (42, 3))):
        assert tuple(row["missing_bars"] for row in told[timeframe]["symbols"]) == missing
        assert told[timeframe]["gaps"] == ([gap] if timeframe != "1Day" else [])


def test_story_without_daily_bars_is_told_without_events(store: Store) -> None:
    bars = ticks(("S00",), date(2024, 6, 10), date(2024, 6, 11))
    told = story(store, store.write({"5Min": bars}, PROVENANCE).id)
    assert "splits" not in told
    assert "5Min bars: 156 of 1 symbol, 2024-06-10 to 2024-06-11" in written(told)


def test_story_of_a_bar_on_a_day_without_session_is_told(store: Store) -> None:
    bars = four_sessions([1.0, 1.0, 1.0, 1.0]).with_columns(pl.col("session").dt.offset_by("2d"))  # Thursday to Sunday
    told = story(store, store.write({"1Day": bars}, PROVENANCE).id)
    assert told["timeframes"]["1Day"]["symbols"][0]["rows"] == 4
    assert told["timeframes"]["1Day"]["symbols"][0]["missing_bars"] == 0
    assert {"severity": "error", "check": "calendar", "findings": 1, "rows": 2} in told["checks"]


def test_tables_show_names_as_they_are_and_splits_as_people_say_them(store: Store) -> None:
    bars = four_sessions([100.0] * 4, split=[1.0, 1.5, 0.1, 1.0475])
    lines = written(story(store, store.write({"1Day": bars}, PROVENANCE).id)).splitlines()
    assert any(HOSTILE in line for line in lines)
    splits = [line.split()[1:] for line in lines[lines.index("Splits, newest first") :] if " for " in line][:3]
    assert [" ".join(words) for words in splits] == [
        "2024-01-05 1.0475 for 1",
        "2024-01-04 1 for 10",
        "2024-01-03 3 for 2",
    ]


def test_tables_of_many_symbols_are_short_and_begin_with_the_troubled(store: Store) -> None:
    bars = pl.concat(four_sessions([1.0, 2.0, 3.0, 4.0]).with_columns(symbol=pl.lit(f"S{n:03}")) for n in range(300))
    bars = bars.filter((pl.col("symbol") != "S200") | (pl.col("session") != date(2024, 1, 4)))
    text = written(story(store, store.write({"1Day": bars}, PROVENANCE).id), most=5)
    assert len(text.splitlines()) < 80
    assert re.search(r"and 295 more", text)
    assert re.search(r"missing\s+─+\s+S200 +3 +2024-01-02 +2024-01-05 +1\s", text)


# ---- the page as a file


@pytest.fixture(scope="module")
def wide(store: Store, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AAPL with twelve features."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("drawing touched the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return draw(tmp_path_factory.mktemp("drawn") / "new folder" / "AAPL.html", store, snapshot.id, "AAPL", FEATURES)


def test_draw_writes_one_whole_page_and_nothing_else(wide: Path) -> None:
    assert [path.name for path in wide.parent.iterdir()] == ["AAPL.html"]
    assert wide.read_text("utf-8").endswith("</html>")
    assert HOSTILE not in wide.read_text("utf-8")


def test_draw_every_indicator_has_a_unit() -> None:
    assert sorted(UNITS) == sorted(indicator.pattern for indicator in INDICATORS)


def test_draw_begins_with_the_symbols_own_first_session(store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    text = draw(tmp_path / "page.html", store, snapshot.id, "GOOG", ("market_return_20",)).read_text("utf-8")
    assert f"{len(sessions_between(date(2004, 8, 19), END))} sessions, 2004-08-19 to {END}" in text


@pytest.mark.parametrize(
    ("symbol", "features", "error", "told"),
    [
        ("AAPL", ("no_such",), ConfigError, "'no_such' is unknown"),
        ("AAPL", (), ConfigError, "at least one"),
        ("NONE", ("rsi_14",), UnknownSymbolError, "NONE"),
        ("NONE", ("beta_60",), UnknownSymbolError, "NONE"),
        ("AAPL", ("hour.rsi_14",), StoreError, "holds no 5Min bars"),
    ],
)
def test_draw_what_is_not_there_names_it_and_writes_nothing(
    store: Store, snapshot: Snapshot, tmp_path: Path, symbol: str, features: tuple[str, ...], error: Any, told: str
) -> None:
    with pytest.raises(error, match=told):
        draw(tmp_path / "page.html", store, snapshot.id, symbol, features)
    assert list(tmp_path.iterdir()) == []


def test_draw_over_a_folder_says_so_and_leaves_no_scratch(store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ConfigError, match=r"page\.html: cannot be written .*choose another file"):
        draw(tmp_path / "page.html", store, snapshot.id, "AAPL", ("rsi_14",))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_draw_without_plotly_names_the_extra(
    store: Store, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("plotly", "plotly.io"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'swing-rl\[plots\]'"):
        draw(tmp_path / "page.html", store, snapshot.id, "AAPL", ("rsi_14",))


# ---- the page in a browser


def opened(page: Page, path: Path) -> Page:
    page.goto(path.as_uri())
    page.wait_for_selector("#bars .g-xtitle text")
    return page


def boxes(page: Page, selector: str) -> list[tuple[str, float, float, float, float]]:
    """Text, left, top, right and bottom of each element."""
    found: list[Any] = page.eval_on_selector_all(
        selector,
        "all => all.map(one => [one.textContent, one.getBoundingClientRect()])"
        ".map(([text, box]) => [text, box.left, box.top, box.right, box.bottom])",
    )
    return [(text, *place) for text, *place in found if place[0] < place[2]]


def values(page: Page, name: str) -> list[float | None]:
    found: list[float | None] = page.evaluate(
        "name => document.getElementById('bars').data.find(trace => trace.name === name).y", name
    )
    return found


TEXTS = ("h1", "h2", "header p", "dt", "dd", "section > p", "#features th", "#features td", "#bars svg text")


@pytest.mark.browser
def test_page_draws_every_row_with_named_axes(wide: Path, page: Page) -> None:
    opened(page, wide)
    count = len(sessions_between(START, END))
    assert page.title() == "AAPL: bars and features"
    assert page.locator("#bars .boxlayer path.box").count() == count
    assert page.locator("#bars .bars path").count() == count
    lines = boxes(page, "#bars path.js-line")
    assert len(lines) == 1 + len(FEATURES)
    assert all(right - left > 400 and bottom - top > 60 for _, left, top, right, bottom in lines)
    titles = page.locator("#bars [class^=g-x] text, #bars [class^=g-y] text").all_text_contents()
    indicators = [feature.indicator.pattern for feature in FeatureSet.of(FEATURES).features]
    assert titles == [
        *("Session (date)", "Session (date)", "USD per share (log)", "USD (log)", "shares"),
        *(UNITS[pattern] for pattern in indicators),
    ]
    headings = [text for text in page.locator("#bars .annotation-text").all_text_contents() if "·" in text]
    assert headings[0] == "Price · raw, as traded"
    assert headings[3] == "rsi_14 · momentum · as of the close · warm-up 14 sessions"
    assert headings[9] == "week.return_4 · week momentum · as of the close · warm-up 4 weeks"
    assert headings[13] == "year_sine · calendar · known at the open · no warm-up"
    facts = dict(zip(page.locator("dt").all_text_contents(), page.locator("dd").all_text_contents(), strict=True))
    assert facts["version"] == HOSTILE
    assert (facts["source"], facts["feed"]) == ("bundled", "package")


@pytest.mark.browser
@pytest.mark.parametrize("width", [800, 1280])
def test_page_has_no_text_over_text(wide: Path, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    opened(page, wide)
    for months in (24, 1):
        if months == 1:
            page.click("#bars .rangeselector .button:has-text('1 month')")
            page.wait_for_function("10 ** document.getElementById('bars').layout.yaxis.range[0] > 50")
        found = boxes(page, ", ".join(TEXTS))
        assert len(found) > 100
        over = [
            (a[0], b[0])
            for a, b in combinations(found, 2)
            if min(a[3], b[3]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[2], b[2]) > 1
        ]
        assert over == []


@pytest.mark.browser
def test_page_of_one_feature_is_lower_than_that_of_twelve_and_all_in_sight(
    store: Store, snapshot: Snapshot, wide: Path, page: Page, tmp_path: Path
) -> None:
    narrow = draw(tmp_path / "page.html", store, snapshot.id, "IBM", ("rsi_14",), log_prices=False)
    heights, scales = [], []
    for path in (narrow, wide):
        opened(page, path)
        scales.append(page.evaluate("document.getElementById('bars').layout.yaxis.type"))
        (box,) = boxes(page, "#bars .svg-container")
        heights.append(box[4] - box[2])
        shown = boxes(page, "#bars svg text")
        assert all(left >= box[1] and right <= box[3] for _, left, _, right, _ in shown)
        assert all(top >= box[2] and bottom <= box[4] for _, _, top, _, bottom in shown)
    assert heights[1] - heights[0] > 11 * 100
    assert scales == ["linear", "log"]
    assert opened(page, narrow).locator("#bars .g-ytitle text").first.text_content() == "USD per share"


@pytest.mark.browser
def test_page_leaves_no_room_for_days_without_session_but_for_missing_bars(
    store: Store, snapshot: Snapshot, wide: Path, page: Page, tmp_path: Path
) -> None:
    steps = {}
    for symbol, path in (("AAPL", wide), ("IBM", draw(tmp_path / "i.html", store, snapshot.id, "IBM", ("rsi_14",)))):
        opened(page, path)
        steps[symbol] = np.diff(
            [(left + right) / 2 for _, left, _, right, _ in boxes(page, "#bars .boxlayer path.box")]
        )
    step = np.median(steps["AAPL"])
    assert np.abs(steps["AAPL"] - step).max() < 0.1 * step
    assert np.flatnonzero(steps["IBM"] > 1.5 * step).tolist() == [len(sessions_between(START, HOLE[0])) - 2]
    assert steps["IBM"].max() == pytest.approx(16 * step, rel=0.01)


@pytest.mark.browser
def test_page_shows_the_values_of_the_panel_and_an_empty_warm_up(wide: Path, page: Page, daily: pl.DataFrame) -> None:
    opened(page, wide)
    panel = build_panel(daily, FeatureSet.of(FEATURES))
    column = panel.symbol_index("AAPL")
    for place, name in enumerate(FEATURES):
        drawn = np.array(values(page, name), np.float64)
        np.testing.assert_allclose(drawn, panel.features[:, column, place], rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(
        np.array(values(page, "adjusted close")), panel.fields["adjusted_close"][:, column], rtol=1e-6
    )
    assert values(page, "rsi_14")[:15] == [*[None] * 14, pytest.approx(panel.features[14, column, 0])]
    shades = boxes(page, "#bars .shapelayer path[style*='fill: rgb(128, 128, 128)']")
    waiting = [feature.name for feature in FeatureSet.of(FEATURES).features if feature.warm_up]
    assert len(shades) == len(waiting) == len(FEATURES) - 1
    lines = boxes(page, "#bars path.js-line")[1:]
    for name, shade in zip(waiting, shades, strict=True):
        line = lines[FEATURES.index(name)]
        assert shade[3] - shade[1] > 1
        assert abs(shade[3] - line[1]) < 2


@pytest.mark.browser
def test_page_marks_splits_and_dividends_and_tells_all_on_hover(wide: Path, page: Page, daily: pl.DataFrame) -> None:
    opened(page, wide)
    assert page.locator("#bars .annotation-text", has_text="2 for 1").count() == 1
    ((_, left, top, right, bottom),) = boxes(page, "#bars .scatterlayer .trace:has(.point) .point")
    page.mouse.move((left + right) / 2, (top + bottom) / 2)
    page.wait_for_selector("#bars .hoverlayer text")
    told = "\n".join(page.locator("#bars .hoverlayer text").all_text_contents())
    assert "Monday 2005-02-28" in told
    assert "split : 2 for 1" in told
    bar = daily.row(by_predicate=(pl.col("symbol") == "AAPL") & (pl.col("session") == date(2005, 2, 28)), named=True)
    assert f"close: ${bar['close']:.2f}" in told
    assert [name for name in FEATURES if f"{name} : " not in told] == ["sma_200_distance"]  # still warming up


@pytest.mark.browser
def test_page_of_a_dividend_payer_marks_each_payment(
    store: Store, snapshot: Snapshot, page: Page, tmp_path: Path, daily: pl.DataFrame
) -> None:
    opened(page, draw(tmp_path / "page.html", store, snapshot.id, "IBM", ("rsi_14",)))
    paid = daily.filter((pl.col("symbol") == "IBM") & (pl.col("dividend") > 0))
    assert page.locator("#bars .scatterlayer .point").count() == paid.height > 5
    texts = page.evaluate("document.getElementById('bars').data.find(trace => trace.name === 'dividend').text")
    assert texts[0] == f"${paid['dividend'][0]:.4g} per share"


@pytest.mark.browser
def test_page_button_shows_the_last_months_in_full_height(wide: Path, page: Page, daily: pl.DataFrame) -> None:
    opened(page, wide)
    page.click("#bars .rangeselector .button:has-text('3 months')")
    last = daily.filter((pl.col("symbol") == "AAPL") & (pl.col("session") > date(2006, 3, 30)))
    page.wait_for_function("10 ** document.getElementById('bars').layout.yaxis.range[0] > 50")
    ranges = page.evaluate("['xaxis', 'xaxis2'].map(axis => document.getElementById('bars').layout[axis].range)")
    assert ranges[0] == ranges[1]  # the dates under the first plot, and those under the last
    low, high = page.evaluate("document.getElementById('bars').layout.yaxis.range.map(power => 10 ** power)")
    assert 0.9 * last["low"].min() < low < last["low"].min()
    assert last["high"].max() < high < 1.1 * last["high"].max()
    shown = page.evaluate("document.getElementById('bars').layout.yaxis4.range")
    recent = np.array(values(page, "rsi_14")[-len(last) :], np.float64)
    assert shown[0] < recent.min() < recent.max() < shown[1]
    assert np.ptp(shown) < 1.2 * np.ptp(recent)
    page.click("#bars .rangeselector .button:has-text('all')")
    page.wait_for_function("10 ** document.getElementById('bars').layout.yaxis.range[0] < 30")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_legible_in_both_colour_schemes(wide: Path, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, wide)
    ground = brightness(page, "body", "backgroundColor")
    texts = ("h1", "dd", "#features td", "#bars .xtick text", "#bars .ytick text", "#bars .y9tick text")
    for text in (*texts, "#bars .annotation-text", "#bars .legendtext", "#bars .g-ytitle text", "#bars .selector-text"):
        colour = "fill" if text.startswith("#bars") else "color"
        assert abs(brightness(page, text, colour) - ground) > 90


@pytest.mark.browser
def test_page_of_features_within_sessions_and_of_too_short_a_history(
    store: Store, within: Snapshot, page: Page, tmp_path: Path
) -> None:
    chosen = ("hour.rsi_14", "5min.session_return", "sma_200_distance")
    opened(page, draw(tmp_path / "page.html", store, within.id, "S00", chosen))
    headings = [text for text in page.locator("#bars .annotation-text").all_text_contents() if "·" in text]
    assert headings[3:] == [
        "hour.rsi_14 · hour momentum · as of the close · warm-up 14 hourly bars",
        "5min.session_return · 5min session · as of the close · no warm-up",
        "sma_200_distance · trend · as of the close · warm-up 199 sessions · no value: the history is shorter than "
        "the warm-up",
    ]
    assert set(values(page, "sma_200_distance")) == {None}
    half_day = sessions_between(date(2024, 6, 10), HALF_DAY)
    missing = [row for row, value in enumerate(values(page, "5min.session_return")) if value is None]
    assert missing == [len(half_day) - 1]
    steps = [b - a for a, b in pairwise(values(page, "hour.rsi_14")[2:5])]
    assert all(steps)
