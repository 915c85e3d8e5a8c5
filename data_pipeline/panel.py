"""The panel: dense arrays over sessions, symbols and features, memory-mapped.

T sessions of the exchange calendar, N symbols, F features. Prices and volumes are raw; `adjusted_close`
is total return with an arbitrary scale per symbol. A cell without a bar is NaN and not tradable.
Everything at row t is known at the close of session t.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import canonical_json
from data_pipeline.errors import StoreError, UnknownSymbolError
from data_pipeline.sessions import Sessions

RAW = ("open", "high", "low", "close", "volume", "split", "dividend")
DERIVED = ("adjusted_close", "sigma", "adv")

Floats = npt.NDArray[np.float64]
Allocate = Callable[[str, tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


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
    exchange: str = "XNYS"

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


def save_panel(panel: Panel, root: Path) -> Path:
    """Writes the panel under `root` in a folder named by its content, and returns that folder.

    The folder appears whole or not at all; saving the same panel again changes nothing.
    """

    def copied(allocate: Allocate) -> Panel:
        features = allocate("features", panel.features.shape, np.float32)
        features[:] = panel.features
        fields = {name: allocate(name, values.shape, np.float64) for name, values in panel.fields.items()}
        for name, values in panel.fields.items():
            fields[name][:] = values
        return replace(panel, features=features, fields=fields)

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
        np.save(scratch / "sessions.npy", panel.sessions, allow_pickle=False)
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
        "format": 2,
        "exchange": panel.exchange,
        "symbols": list(panel.symbols),
        "feature_names": list(panel.feature_names),
        "schema_hash": panel.schema_hash,
        "source": panel.source,
        "arrays": {name: _digest(array) for name, array in _arrays(panel).items()},
    }


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
        head["exchange"],
    )


def _arrays(panel: Panel) -> dict[str, npt.NDArray[Any]]:
    return {"sessions": panel.sessions, "features": panel.features, **panel.fields}


def _digest(array: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
