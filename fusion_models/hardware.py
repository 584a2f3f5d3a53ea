# SPDX-License-Identifier: AGPL-3.0-only
"""Use of the machine by training: number format, threads and handling of freed memory."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time

import torch
from torch import nn

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
LEAST_SPEEDUP = 1.2
"""Factor by which bf16 must be faster than float32 in a trial to be chosen on a processor."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def choose_precision(wanted: str, accelerator: str) -> tuple[str, str]:
    """Number format to train in, and the reason for it in words.

    Args:
        wanted: one of `PRECISIONS`; all but 'auto' are taken as they are.
        accelerator: Lightning Fabric's: 'cpu', 'cuda', 'gpu', 'auto' ...
    """
    if wanted != "auto":
        return wanted, "as set"
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU computes in bf16"
        return "16-mixed", "the GPU has no bf16"
    if accelerator not in ("auto", "cpu"):
        return "32-true", f"half precision is not tested on accelerator {accelerator}"
    if not _processor_has_bf16():
        return "32-true", "the processor has no bf16"
    full, half = (_trial(dtype) for dtype in (torch.float32, torch.bfloat16))
    reason = f"a trial took {half * 1e3:.1f} ms in bf16, {full * 1e3:.1f} ms in float32"
    return ("bf16-mixed" if full > LEAST_SPEEDUP * half else "32-true"), reason


def _processor_has_bf16() -> bool:
    # Emulated bf16 is many times slower than float32, so the trial would be slow as well.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _trial(dtype: torch.dtype, repeats: int = 7) -> float:
    """Seconds of a forward and a backward pass of some small convolutions, median."""
    layers = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
    network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images = torch.rand(4, 16, 96, 96).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = network(images)
        result.float().mean().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory instead of returning it to the system at once.

    The large tensors of a training step are allocated again in each step; by default glibc maps and
    clears their pages each time, which can take longer than the arithmetic.

    Returns:
        Whether it was done; only glibc can.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
