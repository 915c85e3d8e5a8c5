"""The panel: dense arrays over symbols, sessions, features and columns of bars, memory-mapped.

N symbols, T sessions of the exchange calendar, F features, K columns. Prices and volumes are raw;
`adjusted_close` is total return with an arbitrary scale per symbol. A cell without a bar is NaN and not
tradable. Everything at row t is known at the close of session t.

The arrays are stored symbol by symbol, so that what is known of a symbol at a session is one run of memory.
The shapes `[T, N, F]` and `[T, N]`, by which most code asks, are views of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import canonical_json
from data_pipeline.errors import StoreError, UnknownSymbolError
from data_pipeline.sessions import Sessions

RAW = ("open", "high", "low", "close", "volume", "split", "dividend")
COLUMNS = (*RAW, "adjusted_close", "sigma", "adv", "spread")
"""Names along the K axis."""
FORMAT = 3
"""Of stored panels; another order or meaning of `COLUMNS` is another format."""
STORED = {
    "sessions": "sessions",
    "features": "features_NTF",
    "bars": "bars_NTK",
    "ready_run": "ready_run_NT",
    "last_bar": "last_bar_N",
}
"""Files of a panel, and the attributes that they hold."""

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Allocate = Callable[[str, tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


@dataclass(frozen=True)
class Panel:
    """See the module. `Panel.of` makes one of arrays `[T, N]`, `changed` one with other values.

    Attributes:
        sessions: `[T]` datetime64[D].
        symbols: N tickers.
        feature_names: F names.
        schema_hash: Of the feature set.
        source: What the panel was built from (provenance and snapshot id).
        features_NTF: float32, C-contiguous, unscaled, NaN during warm-up.
        bars_NTK: float64, C-contiguous, raw and derived columns in the order of `COLUMNS`. sigma: daily
            volatility of 20 sessions; adv: average daily volume of 20 sessions, in shares of that session;
            spread: estimated quoted spread over the price, a fraction, of 20 pairs of sessions.
        ready_run_NT: int32, C-contiguous: consecutive sessions, ending with this one, at which the symbol has
            been ready, 0 where it is not. Ready means tradable with all features finite.
        last_bar_N: int64, row of the symbol's last bar, -1 without any. It tells where the table ends, not what
            was known at a session.
        exchange: Whose sessions make the T axis.
    """

    sessions: Sessions
    symbols: tuple[str, ...]
    feature_names: tuple[str, ...]
    schema_hash: str
    source: dict[str, Any]
    features_NTF: Floats32
    bars_NTK: Floats
    ready_run_NT: npt.NDArray[np.int32]
    last_bar_N: npt.NDArray[np.int64]
    exchange: str = "XNYS"

    @classmethod
    def of(
        cls,
        sessions: Sessions,
        symbols: tuple[str, ...],
        feature_names: tuple[str, ...],
        schema_hash: str,
        source: dict[str, Any],
        features: Floats32,
        fields: Mapping[str, Floats],
        exchange: str = "XNYS",
    ) -> Panel:
        """Returns the panel of features `[T, N, F]` and all of `COLUMNS` by name, `[T, N]` each, copied.

        Raises:
            ValueError: A column is missing, or there is no such column.
        """
        if odd := sorted(fields.keys() ^ set(COLUMNS)):
            raise ValueError(f"fields {', '.join(odd)}: missing or unknown; give exactly {', '.join(COLUMNS)}")
        features_NTF = np.array(features.transpose(1, 0, 2), np.float32, order="C")
        bars_NTK = np.stack([fields[name].T for name in COLUMNS], axis=-1, dtype=np.float64)
        ready = (fields["volume"].T > 0) & np.isfinite(features_NTF).all(axis=-1)
        known = np.isfinite(fields["close"])
        last_bar = np.where(known.any(axis=0), len(known) - 1 - known[::-1].argmax(axis=0), -1)
        arrays = (features_NTF, np.ascontiguousarray(bars_NTK), run_lengths(ready), last_bar)
        return cls(sessions, symbols, feature_names, schema_hash, source, *arrays, exchange)

    def changed(self, **values: Any) -> Panel:
        """Returns the panel with other values of some arguments of `of`."""
        mine: dict[str, Any] = {
            "sessions": self.sessions,
            "symbols": self.symbols,
            "feature_names": self.feature_names,
            "schema_hash": self.schema_hash,
            "source": self.source,
            "features": self.features,
            "fields": self.fields,
            "exchange": self.exchange,
        }
        return Panel.of(**mine | values)

    @property
    def features(self) -> Floats32:
        """`features_NTF` as `[T, N, F]`, a view."""
        return self.features_NTF.transpose(1, 0, 2)

    @property
    def fields(self) -> dict[str, Floats]:
        """The columns of `bars_NTK` by name, `[T, N]` each, views."""
        return {name: self.bars_NTK[..., k].T for k, name in enumerate(COLUMNS)}

    @property
    def tradable(self) -> Bools:
        """True where the symbol has a bar with volume, `[T, N]`."""
        return np.asarray(self.fields["volume"] > 0)

    @property
    def ready(self) -> Bools:
        """True where the symbol is tradable and all its features are finite, `[T, N]`."""
        return np.asarray(self.ready_run_NT.T > 0)

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


def run_lengths(ready: Bools, before: int = 0) -> npt.NDArray[np.int32]:
    """Returns how many True values in a row end at each place, `[..., T]`; `before` of them precede the first."""
    place = np.arange(1, ready.shape[-1] + 1, dtype=np.int32)
    return place - np.maximum.accumulate(np.where(ready, np.int32(-before), place), axis=-1)


def save_panel(panel: Panel, root: Path) -> Path:
    """Writes the panel under `root` in a folder named by its content, and returns that folder.

    The folder appears whole or not at all; saving the same panel again changes nothing.
    """

    def copied(allocate: Allocate) -> Panel:
        arrays: dict[str, Any] = {}
        for name, attribute in STORED.items():
            values = getattr(panel, attribute)
            arrays[attribute] = allocate(name, values.shape, values.dtype)
            arrays[attribute][:] = values
        return replace(panel, **arrays)

    return write_panel(copied, root)


def write_panel(make: Callable[[Allocate], Panel], root: Path) -> Path:
    """Writes the panel that `make` builds straight into files, and returns its folder; see `save_panel`.

    Args:
        make: Builds the panel in the arrays that it is given the allocator of.
        root: Folder of panels.
    """
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))

    def mapped(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", np.dtype(dtype), shape)
        with (scratch / f"{name}.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))  # a full disk now, not a SIGBUS later
        return array

    try:
        panel = make(mapped)
        head = _head(panel)
        folder = root / hashlib.sha256(canonical_json(head)).hexdigest()[:16]
        if (folder / "panel.json").is_file():
            return folder
        (scratch / "panel.json").write_text(json.dumps(head, indent=1, sort_keys=True), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a leftover without panel.json is no panel
        scratch.replace(folder)
    except OSError as error:
        raise StoreError(f"{root}: cannot write the panel ({error}); free space or choose another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _head(panel: Panel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "exchange": panel.exchange,
        "symbols": list(panel.symbols),
        "feature_names": list(panel.feature_names),
        "schema_hash": panel.schema_hash,
        "source": panel.source,
        "arrays": {name: _digest(getattr(panel, attribute)) for name, attribute in STORED.items()},
    }


def open_panel(folder: Path, verify: bool = False) -> Panel:
    """Returns the panel in `folder`, memory-mapped: loading takes milliseconds and no copy.

    Args:
        folder: As `save_panel` returned it.
        verify: Read every byte and compare the hashes.

    Raises:
        StoreError: The folder holds no panel, one of another format, or one that was altered.
    """
    try:
        head = json.loads((folder / "panel.json").read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise StoreError(
                f"{folder}: a panel of format {head['format']}, this version reads format {FORMAT}; "
                "build it again with `swing-data build`"
            )
        # Plain arrays on the mapped memory: a memmap would be copied on its way through Ray, and is slow to slice.
        arrays: dict[str, Any] = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in STORED}
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder}: no readable panel ({error}); build it with `swing-data build`") from error
    if verify:
        altered = [name for name, array in arrays.items() if _digest(array) != head["arrays"][name]]
        if altered:
            raise StoreError(f"{folder}: {', '.join(altered)} altered since it was written; build the panel again")
    return Panel(
        symbols=tuple(head["symbols"]),
        feature_names=tuple(head["feature_names"]),
        schema_hash=head["schema_hash"],
        source=head["source"],
        exchange=head["exchange"],
        **{attribute: arrays[name] for name, attribute in STORED.items()},
    )


def _digest(array: npt.NDArray[Any]) -> str:
    """Returns the hash of a contiguous array, of its own bytes without a copy."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
