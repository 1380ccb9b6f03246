"""The memory of a training on a processor: what a step frees is kept for the next.

glibc gives every large array back to the kernel as soon as it is freed, and each new one comes as pages that the kernel
zeroes one by one: a fifth of the time of a detector's training step, whose arrays are large and the same step by step.
"""

import ctypes
import platform

# mallopt(3): which parameter is set, and to what.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_freed_memory() -> None:
    """Have this process keep what it frees, for good. Does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, NONE)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
