"""The CUDA driver, as far as it must be asked before any library on it is loaded."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def driver() -> ctypes.CDLL | None:
    """The initialised CUDA driver library, or None where it or a GPU is missing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    return library


def device_name(device: int = 0) -> str:
    """Name of a GPU, such as 'NVIDIA GeForce RTX 4090'; empty if it cannot be asked."""
    name = ctypes.create_string_buffer(256)
    library = driver()
    if library is None or library.cuDeviceGetName(name, len(name), device):
        return ""
    return name.value.decode()
