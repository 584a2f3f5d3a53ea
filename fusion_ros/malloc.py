"""The C library's allocator, told to keep the memory of images for the next ones."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT = 1 << 30
_LARGEST = 32 << 20
"""Most that glibc takes for the threshold; larger pieces are still mapped each on its own."""


def keep_freed_memory() -> bool:
    """Have this process reuse freed memory up to 1 GB; whether the C library can (glibc can).

    As it comes, glibc gives the memory of an image back to the system when its message is freed,
    and the next message pays for fresh, zeroed pages: most of the time that a large message takes
    to be deserialised. Peak memory stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
