"""How a server's memory is kept: the C library's habits suit short programs."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_MIB: Final = 2**20
_GLIBC_OPTIONS: Final = {
    -8: 1,  # M_ARENA_MAX: one heap for all threads, so that what one has freed another one takes.
    -3: 32 * _MIB,  # M_MMAP_THRESHOLD: only what is larger comes fresh from the system, page by page.
    -1: 1024 * _MIB,  # M_TRIM_THRESHOLD: what is free at the heap's end stays for the next batch.
}


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next batch, in one heap for all threads; True where it was told so.

    By default it gives the memory of every batch back and asks for it anew, page by page, and keeps a heap for each
    thread, all of which grow to what the largest batch took. To be called before threads are started. Environment
    variables (`MALLOC_ARENA_MAX` and the like) are overruled. Nothing happens with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in _GLIBC_OPTIONS.items())
