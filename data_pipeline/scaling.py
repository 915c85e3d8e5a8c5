"""Robust scaling, fitted on a fold's training sessions only; the numbers travel in the bundle."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import FoldError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel


class Scaler(Config):
    """Median and interquartile range per feature."""

    median: tuple[float, ...]
    """Subtracted, one number per feature."""
    spread: tuple[Annotated[float, Field(gt=0)], ...]
    """Divided by: the interquartile range, or 1 where that is 0."""
    clip: Annotated[float, Field(gt=0)] = 5.0
    """Scaled values are clipped to ± this."""

    def transform(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns scaled features, same shape `[..., F]`, float32; NaN stays NaN."""
        median, spread = (np.asarray(numbers, np.float32) for numbers in (self.median, self.spread))
        return scaled(features, median, spread, self.clip)


def scaled(
    features: npt.NDArray[np.float32],
    median: npt.NDArray[np.float32],
    spread: npt.NDArray[np.float32],
    clip: float,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Returns (features - median) / spread within ± clip, all arrays broadcast.

    `out`, where it is given, takes the result; it may be `features` itself.
    """
    out = np.empty(features.shape, np.float32) if out is None else out
    np.subtract(features, median, out=out)
    np.divide(out, spread, out=out)
    return np.clip(out, -clip, clip, out=out)


def fit_scaler(panel: Panel, span: Span) -> Scaler:
    """Returns the scaler fitted on the ready cells of `span`, pooled over symbols.

    Raises:
        FoldError: No cell of the span is ready.
    """
    rows = slice(span.start, span.stop)
    features_NTF, ready_NT = panel.features_NTF[:, rows], panel.ready_run_NT[:, rows] > 0
    if not ready_NT.any():
        raise FoldError(
            f"no symbol has complete features between {panel.sessions[span.start]} and "
            f"{panel.sessions[span.stop - 1]}; start the fold later"
        )
    # One feature at a time: the cells of a wide panel would take gigabytes as float64.
    columns = (features_NTF[..., f][ready_NT].astype(np.float64) for f in range(features_NTF.shape[-1]))
    low, median, high = np.array([np.percentile(cells, [25, 50, 75]) for cells in columns]).T
    spread = np.where(high - low > 1e-12, high - low, 1.0)  # a flag that rarely changes keeps its unit
    return Scaler(median=tuple(median.tolist()), spread=tuple(spread.tolist()))
