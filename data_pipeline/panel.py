"""The panel: dense arrays over sessions, symbols and features, memory-mapped.

T sessions of the exchange calendar, N symbols, F features. Prices and volumes are raw; `adjusted_close`
is total return with an arbitrary scale per symbol. A cell without a bar is NaN and not tradable.
Everything at row t is known at the close of session t.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import talib

from data_pipeline.config import canonical_json
from data_pipeline.errors import BarsError, StoreError, UnknownSymbolError
from data_pipeline.features import Adjusted, FeatureSet, adjusted_columns, with_adjusted
from data_pipeline.sessions import Sessions, sessions_between

RAW = ("open", "high", "low", "close", "volume", "split", "dividend")
DERIVED = ("adjusted_close", "sigma", "adv")
RISK_WINDOW_SESSIONS = 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """See the module.

    Attributes:
        sessions: `[T]` datetime64[D].
        symbols: N tickers.
        feature_names: F names.
        schema_hash: Of the feature set.
        source: What the panel was built from (provenance and snapshot id).
        features: `[T, N, F]` float32, unscaled, NaN during warm-up.
        fields: Raw and derived columns by name, `[T, N]` float64. sigma: daily volatility of 20 sessions;
            adv: average daily volume of 20 sessions, in shares of that session.
    """

    sessions: Sessions
    symbols: tuple[str, ...]
    feature_names: tuple[str, ...]
    schema_hash: str
    source: dict[str, Any]
    features: npt.NDArray[np.float32]
    fields: dict[str, Floats]

    @property
    def tradable(self) -> npt.NDArray[np.bool_]:
        """True where the symbol has a bar with volume, `[T, N]`."""
        return np.asarray(self.fields["volume"] > 0)

    @property
    def ready(self) -> npt.NDArray[np.bool_]:
        """True where the symbol is tradable and all its features are finite, `[T, N]`."""
        return self.tradable & np.isfinite(self.features).all(axis=-1)

    def session_index(self, session: Any) -> int:
        """Returns the row of `session`.

        Raises:
            StoreError: The panel does not hold it.
        """
        day = np.datetime64(session, "D")
        row = int(np.searchsorted(self.sessions, day))
        if row == len(self.sessions) or self.sessions[row] != day:
            raise StoreError(
                f"session {day} is not in the panel ({self.sessions[0]} .. {self.sessions[-1]}); "
                "choose an exchange session inside it"
            )
        return row

    def symbol_index(self, symbol: str) -> int:
        """Returns the column of `symbol`.

        Raises:
            UnknownSymbolError: The panel does not hold it.
        """
        if symbol not in self.symbols:
            raise UnknownSymbolError(f"symbol {symbol!r} is not in the panel; it holds {', '.join(self.symbols)}")
        return self.symbols.index(symbol)


def build_panel(
    bars: pl.DataFrame,
    feature_set: FeatureSet,
    symbols: tuple[str, ...] | None = None,
    exchange: str = "XNYS",
    source: dict[str, Any] | None = None,
) -> Panel:
    """Returns the panel of checked bars.

    Args:
        bars: A bars table that passed `schema.checked`.
        feature_set: What to compute.
        symbols: Order of the N axis; None: those of the table, sorted. One without bars stays empty.
        exchange: Whose sessions make the T axis, from the table's first to its last.
        source: Recorded in the panel.

    Raises:
        BarsError: A bar on a day that is no session, or an impossible dividend.
    """
    bars = with_adjusted(bars)
    symbols = symbols or tuple(bars["symbol"].unique().sort())
    days = bars["session"].sort()
    sessions = sessions_between(days[0], days[-1], exchange)
    shape = (len(sessions), len(symbols))
    features = np.full((*shape, len(feature_set.features)), np.nan, np.float32)
    fields = {name: np.full(shape, np.nan) for name in (*RAW, *DERIVED)}
    fields["split"][:], fields["dividend"][:] = 1.0, 0.0
    for (symbol,), rows in bars.group_by("symbol", maintain_order=True):
        if symbol in symbols:
            column = symbols.index(symbol)
            at = _rows_of(rows["session"].to_numpy(), sessions, str(symbol), exchange)
            adjusted = adjusted_columns(rows)
            features[at, column] = feature_set.compute(adjusted)
            for name, values in _fields_of(rows, adjusted).items():
                fields[name][at, column] = values
    return Panel(sessions, symbols, feature_set.names, feature_set.schema_hash, dict(source or {}), features, fields)


def _rows_of(days: npt.NDArray[Any], sessions: Sessions, symbol: str, exchange: str) -> npt.NDArray[np.int64]:
    days = days.astype("datetime64[D]")
    at = np.searchsorted(sessions, days)
    strangers = days[sessions[np.minimum(at, len(sessions) - 1)] != days]
    if len(strangers):
        raise BarsError(
            f"{symbol} {strangers[0]}: not a session of {exchange}; drop the bar or name the right exchange"
        )
    return at


def _fields_of(rows: pl.DataFrame, adjusted: Adjusted) -> dict[str, Floats]:
    log_return = np.diff(np.log(adjusted.close))
    sigma = np.full(len(adjusted.close), np.nan)
    if len(log_return):
        sigma[1:] = talib.STDDEV(log_return, RISK_WINDOW_SESSIONS)
    factor = rows["factor"].to_numpy()
    return {
        **{name: rows[name].to_numpy() for name in RAW},
        "adjusted_close": adjusted.close,
        "sigma": sigma,
        "adv": talib.SMA(adjusted.volume, RISK_WINDOW_SESSIONS) * factor,
    }


def save_panel(panel: Panel, root: Path) -> Path:
    """Writes the panel under `root` in a folder named by its content, and returns that folder.

    The folder appears whole or not at all; saving the same panel again changes nothing.
    """
    arrays = _arrays(panel)
    head = {
        "format": 1,
        "symbols": list(panel.symbols),
        "feature_names": list(panel.feature_names),
        "schema_hash": panel.schema_hash,
        "source": panel.source,
        "arrays": {name: _digest(array) for name, array in arrays.items()},
    }
    folder = root / hashlib.sha256(canonical_json(head)).hexdigest()[:16]
    if (folder / "panel.json").is_file():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
    try:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array, allow_pickle=False)
        (scratch / "panel.json").write_text(json.dumps(head, indent=1, sort_keys=True), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a leftover without panel.json is no panel
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def open_panel(folder: Path, verify: bool = False) -> Panel:
    """Returns the panel in `folder`, memory-mapped: loading takes milliseconds and no copy.

    Args:
        folder: As `save_panel` returned it.
        verify: Read every byte and compare the hashes.

    Raises:
        StoreError: The folder holds no panel, or one that was altered.
    """
    try:
        head = json.loads((folder / "panel.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in head["arrays"]}
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder}: no readable panel ({error}); build it with `swing-data build`") from error
    if verify:
        altered = [name for name, array in arrays.items() if _digest(array) != head["arrays"][name]]
        if altered:
            raise StoreError(f"{folder}: {', '.join(altered)} altered since it was written; build the panel again")
    sessions, features = arrays.pop("sessions"), arrays.pop("features")
    return Panel(
        sessions,
        tuple(head["symbols"]),
        tuple(head["feature_names"]),
        head["schema_hash"],
        head["source"],
        features,
        arrays,
    )


def _arrays(panel: Panel) -> dict[str, npt.NDArray[Any]]:
    return {"sessions": panel.sessions, "features": panel.features, **panel.fields}


def _digest(array: npt.NDArray[Any]) -> str:
    contiguous = np.ascontiguousarray(array)
    head = f"{contiguous.dtype.str}{contiguous.shape}".encode()
    return hashlib.sha256(head + contiguous.view(np.uint8).tobytes()).hexdigest()
