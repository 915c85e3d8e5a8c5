"""Random numbers that belong to a place, not to an order of calls: counter-based, so any batch draws the same.

A slot's seed and the number of its episode make a key, and a key makes a sequence of numbers. So a slot draws what it
would draw alone, whatever else is stepped beside it.

Keys and numbers are those of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from envs.contract import Floats, Ints

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_AHEAD = 16
_STEPS = np.arange(_AHEAD + 1, dtype=np.uint64) * _GOLDEN
_SHIFTS = tuple(np.uint64(shift) for shift in (30, 27, 31, 11))


def keys_of(seeds: Sequence[int]) -> Keys:
    """Returns one key for each non-negative seed, `[B]`."""
    return _mixed(np.array(seeds, np.uint64))


def derived(keys: Keys, numbers: Ints) -> Keys:
    """Returns the keys of the numbered children of `keys`, such as a slot's episodes; shapes broadcast."""
    return _mixed(keys + numbers.astype(np.uint64) * _GOLDEN)


def uniforms(keys: Keys) -> Floats:
    """Returns a number in [0, 1) for each key, same shape."""
    bits = _mixed(keys)
    bits >>= _SHIFTS[3]
    return bits.astype(np.float64) * 2.0**-53


class Streams:
    """A sequence of numbers for each of `[N, B]` places; drawn some steps ahead, which is five times as quick."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._keys: Keys = np.zeros(shape, np.uint64)
        self._drawn: Floats = np.zeros((_AHEAD, *shape))
        self._used = _AHEAD

    def restart(self, slots: Ints, keys: Keys) -> None:
        """Begins the sequences of the places `[:, slots]` anew, from `keys` `[N, b]`."""
        left = _AHEAD - self._used
        self._drawn[self._used :, :, slots] = _following(keys, left)
        self._keys[:, slots] = keys + _STEPS[left]

    def draw(self) -> Floats:
        """Returns the next number of each sequence, `[N, B]`."""
        if self._used == _AHEAD:
            self._drawn = _following(self._keys, _AHEAD)
            self._keys += _STEPS[_AHEAD]
            self._used = 0
        self._used += 1
        drawn: Floats = self._drawn[self._used - 1]
        return drawn


def _following(keys: Keys, count: int) -> Floats:
    """Returns the next numbers of sequences that stand at `keys` `[N, B]`, `[count, N, B]`."""
    return uniforms(keys + _STEPS[1 : count + 1, None, None])


def _mixed(bits: Keys) -> Keys:
    bits = bits + _GOLDEN
    bits ^= bits >> _SHIFTS[0]
    bits *= _FIRST
    bits ^= bits >> _SHIFTS[1]
    bits *= _SECOND
    bits ^= bits >> _SHIFTS[2]
    return bits
