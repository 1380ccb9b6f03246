"""Processes that ought to have ended."""

import time

import psutil

LEAVE_SECONDS = 30


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are alive though they have had time to end."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [process for process in processes if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
