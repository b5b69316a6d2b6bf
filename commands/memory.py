"""How this process gets its memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Keep what is freed for the next tensor, where C's library is glibc; elsewhere, do nothing.

    By default, glibc gives each large block back to the system and asks for it again, page by page: half of the time of
    a training step of a small network on the CPU. Kept, the peak is 15 % more (measured: benchmarks/rexnet.py kept).
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
