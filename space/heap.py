"""Memory that is freed goes back to the system."""

import ctypes
import platform


_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's malloc.h
_OWN_MAPPING_BYTES = 1 << 20
_ARENAS = 2


def limit_fragmentation() -> None:
    """
    Keep freed images and answers from staying in the process, where the allocator is glibc's; else do nothing.

    By default glibc has an arena of its own for each of the many threads that Gradio uses, and puts blocks of up to
    32 MB into them, where what is small and stays keeps what was large and is gone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_M_ARENA_MAX, _ARENAS)
    allocator.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
