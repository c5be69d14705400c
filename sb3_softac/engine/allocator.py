"""What glibc does with the memory of tensors that a gradient step frees and the next one needs again."""

import ctypes
import functools
import os
import platform

#: glibc's names for what it can be told (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: larger blocks are returned when they are freed, as is free memory at the top of the heap beyond so much; the first is the
#: most that every glibc takes
LARGEST_KEPT, MOST_KEPT = 32 * 2**20, 256 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors of the process, and say whether it does.

    By itself it returns the large tensors of a gradient step to the kernel each time, and the kernel then clears the pages
    for the next step, with ten critics for a good part of the time. What the user has told glibc stays;
    ``SB3_SOFTAC_NO_MALLOPT=1`` leaves it alone.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if told or os.environ.get("SB3_SOFTAC_NO_MALLOPT") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
