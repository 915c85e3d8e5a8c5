"""Random numbers that belong to a place: the same whatever is drawn beside them, uniform, and unlike each other."""

from __future__ import annotations

import numpy as np

from envs.chance import Streams, derived, keys_of, uniforms


def _sequence(key: np.ndarray, count: int) -> list[float]:
    streams = Streams((1, 1))
    streams.restart(np.array([0]), key.reshape(1, 1))
    return [float(streams.draw()[0, 0]) for _ in range(count)]


def test_stream_is_its_own_whenever_it_and_its_neighbours_begin():
    keys = derived(keys_of(range(6))[None], np.arange(2)[:, None])
    streams, begun = Streams((2, 6)), {}
    seen: dict[int, list[np.ndarray]] = {slot: [] for slot in range(6)}
    for step in range(50):
        for slot in range(6):
            if step in (slot * 3, 20 + slot):  # begins, and begins anew
                streams.restart(np.array([slot]), keys[:, [slot]])
                begun[slot], seen[slot] = step, []
        drawn = streams.draw()
        for slot in begun:
            seen[slot].append(drawn[:, slot].copy())
    for slot, numbers in seen.items():
        for member in range(2):
            assert [n[member] for n in numbers] == _sequence(keys[member, slot], len(numbers))


def test_numbers_are_uniform_and_independent_over_seeds_children_and_steps():
    keys = derived(keys_of(range(1000))[None], np.arange(5)[:, None])
    streams = Streams((5, 1000))
    streams.restart(np.arange(1000), keys)
    numbers = np.array([streams.draw().copy() for _ in range(40)])
    assert 0 <= numbers.min() <= numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    expected = numbers.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 95  # chi-squared with 49 degrees: once in ten thousand
    centred = (numbers - 0.5) * 12**0.5
    for axis in range(3):
        low, high = (
            np.take(centred, range(centred.shape[axis] - 1), axis),
            np.take(centred, range(1, centred.shape[axis]), axis),
        )
        assert abs((low * high).mean()) < 4 / low.size**0.5
    assert len(np.unique(numbers)) == numbers.size


def test_keys_of_neighbouring_seeds_share_nothing():
    first = uniforms(keys_of(range(10_000)))
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert len(np.unique(keys_of(range(10_000)))) == 10_000
