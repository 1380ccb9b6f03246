"""Errors: which may pass, and the words for each."""

import errno
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest
from botocore.exceptions import EndpointConnectionError
from distributed import KilledWorker

from flows.cluster import reason, worth_retrying


def killed() -> KilledWorker:
    return KilledWorker("chunk", None, 3)


@pytest.mark.parametrize(
    ("make", "again", "words"),
    [
        (lambda: OSError(errno.EIO, "Input/output error", "/a"), True, "Input/output error: /a"),
        (lambda: OSError("connection lost"), True, "connection lost"),
        (lambda: OSError(errno.ENOSPC, "No space left on device", "/a"), False, "No space left on device: /a"),
        (lambda: PermissionError(errno.EACCES, "Permission denied", "/a"), False, "Permission denied: /a"),
        (lambda: ValueError("two\nlines"), False, "ValueError: two lines"),
        (killed, True, "a worker died 4 times"),
        (lambda: EndpointConnectionError(endpoint_url="http://s3"), True, "EndpointConnectionError: Could not connect"),
        (CancelledError, False, "CancelledError"),
    ],
)
def test_errors_that_may_pass_are_told_from_those_that_last(
    make: Callable[[], Exception], again: bool, words: str
) -> None:
    assert worth_retrying(make()) is again
    assert words in reason(make())
