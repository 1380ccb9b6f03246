"""A training on a processor keeps the memory that its steps free."""

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource
import sys
from wbc.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for i in range(21):
    if i == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str) -> int:
    """Pages that the kernel had to bring while 64 MiB were allocated and freed twenty times."""
    done = subprocess.run([sys.executable, "-c", ALLOCATE, way], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_freed_is_there_for_the_next() -> None:
    assert page_faults("as it is") > 20 * 100
    assert page_faults("kept") < 100
