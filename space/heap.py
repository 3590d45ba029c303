"""Memory that is freed goes back to the system."""

import ctypes
import platform


_M_ARENA_MAX = -8  # of glibc's malloc.h
_ARENAS = 2
_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def limit_arenas() -> None:
    """Let Gradio's many threads share few heaps, of which glibc otherwise has one for each of them."""
    if _GLIBC is not None:
        _GLIBC.mallopt(_M_ARENA_MAX, _ARENAS)


def return_freed() -> None:
    """
    Return freed images and answers to the system, where the allocator is glibc's; else do nothing.

    It keeps them for as long as anything lies behind them in the heap, however small. Keeping them out of the heap
    (`M_MMAP_THRESHOLD`) would take the model's activations out of it, too: passes took half as long again.
    """
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)
