"""Random numbers that belong to a place, not to an order of calls: counter-based, so any batch draws the same.

A slot's seed and the number of its episode make a key; a key makes a number, and steps on to the key of the next.
So a slot draws what it would draw alone, whatever else is stepped beside it.

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
_SHIFTS = tuple(np.uint64(shift) for shift in (30, 27, 31, 11))


def keys_of(seeds: Sequence[int]) -> Keys:
    """Returns one key for each non-negative seed, `[B]`."""
    return _mixed(np.array(seeds, np.uint64))


def derived(keys: Keys, numbers: Ints) -> Keys:
    """Returns the keys of the numbered children of `keys`, such as a slot's episodes; shapes broadcast."""
    return _mixed(keys + numbers.astype(np.uint64) * _GOLDEN)


def uniforms(keys: Keys) -> Floats:
    """Returns a number in [0, 1) for each key, same shape; see `follow` for the next one."""
    bits = _mixed(keys)
    bits >>= _SHIFTS[3]
    return bits.astype(np.float64) * 2.0**-53


def follow(keys: Keys) -> None:
    """Moves `keys` on in place to those of the next draw."""
    keys += _GOLDEN


def _mixed(bits: Keys) -> Keys:
    bits = bits + _GOLDEN
    bits ^= bits >> _SHIFTS[0]
    bits *= _FIRST
    bits ^= bits >> _SHIFTS[1]
    bits *= _SECOND
    bits ^= bits >> _SHIFTS[2]
    return bits
