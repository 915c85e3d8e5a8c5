"""How a process that computes is set up: one thread, and memory that it keeps."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from threadpoolctl import threadpool_limits

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


@cache
def settle() -> None:
    """Gives this process one thread for tensors and arrays, and lets it keep freed memory; once is enough.

    Workers fill the processors, so a second thread only takes time from another worker: NumPy's BLAS would even spin
    between two products. Gradients of an LSTM free and take tens of megabytes each time; glibc hands them back to the
    system and gets them anew, a page fault every 4 KiB, which is a quarter of the time with 256 slots.
    """
    torch.set_num_threads(1)
    threadpool_limits(limits=1, user_api="blas")
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if allocator is not None:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            allocator(option, _KEPT_BYTES)
