"""One writer for an OUT: a run holds it for its whole length, and another is refused with the name of the holder.

The holder is written down in the lease, a file in OUT, and renewed there every RENEW_SECONDS. Who finds it there is
refused, unless the holder is dead: on the same host, where its process is gone or its number now belongs to a process
that started at another time; elsewhere, where the lease was not renewed for TERM_SECONDS (by the clocks of the two
hosts, which must agree to within a minute).

Where OUT is local, the operating system's lock on a file in it decides between the processes of a host, and ends with
its process. Where it is not, what decides is that the store creates an object only where none is (memory,
S3, Google Cloud: `mode="create"`). A store that cannot, and a lease taken over from a dead holder on another host, are
settled by the last word: who writes the lease reads it again after SETTLE_SECONDS, and holds OUT if it still bears his
name. Two runs can then both hold OUT only if one of them stood still for that long between reading and writing; the
next renewal tells the one that lost, and `Hold.check` ends it. Readers need no lock.
"""

import getpass
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout
from upath import UPath

from wbc.storage import atomic
from wbc.storage.layout import Layout

logger = logging.getLogger(__name__)
TERM_SECONDS, RENEW_SECONDS, SETTLE_SECONDS = 120.0, 20.0, 1.0
SAME_START_SECONDS = 2.0
NAME_SECONDS, POLL_SECONDS = 2.0, 0.02


class OutInUse(ValueError):
    """OUT has another writer; the message names it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes to an OUT, and when it last said so (`renewed`, seconds since 1970)."""

    run_id: str
    user: str
    host: str
    pid: int
    process_started: float
    since: str
    renewed: float

    @staticmethod
    def of_this_process(run_id: str) -> "Holder":
        """The holder that this process is from now on."""
        pid, now = os.getpid(), datetime.now(UTC)
        since = now.isoformat(" ", "seconds")
        return Holder(run_id, _user(), socket.gethostname(), pid, _start_of(pid) or 0.0, since, now.timestamp())

    def is_alive(self) -> bool:
        """Whether this holder may still write."""
        if self.host == socket.gethostname():
            started = _start_of(self.pid)
            return started is not None and abs(started - self.process_started) < SAME_START_SECONDS
        return time.time() - self.renewed < TERM_SECONDS

    def __str__(self) -> str:
        return f"{self.user}'s run {self.run_id} (process {self.pid} on {self.host}, since {self.since})"


class Hold:
    """An OUT that this process holds."""

    def __init__(self, lease: UPath, holder: Holder) -> None:
        self._lease, self._holder = lease, holder
        self._renewed, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="wbc-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises OutInUse where another run has taken OUT over, or may have, as the lease could not be renewed."""
        standing = self._standing()
        if standing is not None and not _is_same(standing, self._holder):
            raise OutInUse(f"OUT was taken over by {standing}: this run was taken for dead")
        if time.monotonic() - self._renewed > TERM_SECONDS:
            raise OutInUse(f"the lease {str(self._lease)!r} could not be renewed for {TERM_SECONDS:.0f} seconds")

    def release(self) -> None:
        """Let go of OUT."""
        self._ended.set()
        self._thread.join()
        standing = self._standing()
        if standing is not None and _is_same(standing, self._holder):
            with suppress(OSError):
                self._lease.unlink(missing_ok=True)

    def _standing(self) -> Holder | None:
        """The holder that the lease names now; None where nobody can tell."""
        try:
            return _read(self._lease)
        except Exception as error:  # each store has its own for a network that fails
            logger.warning("the lease %r cannot be read: %s", str(self._lease), error)
            return None

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.check()
                _write(self._lease, self._holder)
                self._renewed = time.monotonic()
            except OutInUse as error:
                logger.error("%s", error)
                return
            except Exception as error:  # each store has its own for a network that fails
                logger.warning("the lease %r cannot be renewed: %s", str(self._lease), error)


@contextmanager
def holding(out: UPath, run_id: str) -> Iterator[Hold]:
    """Within, this process is the one writer of OUT; makes the folder.

    Raises OutInUse where OUT has another writer that is alive, OSError where nothing can be written there.
    """
    lease = Layout(out).lease()
    with atomic.naming(lease.parent, "results cannot be written here"):
        lease.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(out)
        try:
            holder = Holder.of_this_process(run_id)
            _take(out, lease, holder)
            hold = Hold(lease, holder)
        except BaseException:
            lock.release()
            raise
    try:
        yield hold
    finally:
        hold.release()
        lock.release()


def check_free(out: UPath) -> None:
    """Raises OutInUse where OUT has a writer that is alive; writes nothing, and so keeps nobody away."""
    standing = _read(Layout(out).lease())
    if standing is not None and standing.is_alive():
        raise _refusal(out, standing)


def _locked(out: UPath) -> FileLock:
    """The operating system's lock of a local OUT, held; elsewhere, and where there is none, one that holds nothing."""
    local = atomic.local_path(Layout(out).lock())
    lock = FileLock(local or os.devnull, timeout=0)
    if local is not None:
        try:
            _acquire(lock, out)
        except NotImplementedError:
            logger.warning("%r lies on a file system without locks: its lease alone keeps other runs away", str(out))
    return lock


def _acquire(lock: FileLock, out: UPath) -> None:
    """Hold the lock, or raise OutInUse with the name of who does: one who has just come has not written it down yet."""
    last = time.monotonic() + NAME_SECONDS
    while True:
        try:
            lock.acquire()
            return
        except Timeout:
            standing = _read(Layout(out).lease())
            if (standing is not None and standing.is_alive()) or time.monotonic() > last:
                raise _refusal(out, standing) from None
        time.sleep(POLL_SECONDS)


def _take(out: UPath, lease: UPath, holder: Holder) -> None:
    """Write down that `holder` holds OUT. Raises OutInUse where another one does that is alive."""
    standing = _read(lease)
    if standing is not None and standing.is_alive():
        raise _refusal(out, standing)
    if standing is not None:
        logger.warning("%r was held by %s, which is dead: it is taken over", str(out), standing)
    try:
        is_sure = standing is None and _create(lease, holder)
    except FileExistsError:
        standing = _read(lease)
        if standing is not None:
            raise _refusal(out, standing) from None
        is_sure = False
    if is_sure:
        return
    _write(lease, holder)
    is_locked = atomic.local_path(lease) is not None and (standing is None or standing.host == holder.host)
    if not is_locked:
        time.sleep(SETTLE_SECONDS)
        last = _read(lease)
        if last is None or not _is_same(last, holder):
            raise _refusal(out, last)


def _refusal(out: UPath, holder: Holder | None) -> OutInUse:
    who = str(holder) if holder else "another run"
    return OutInUse(f"OUT {str(out)!r} is written by {who}; one run at a time: wait for its end, or choose another OUT")


def _create(lease: UPath, holder: Holder) -> bool:
    """Write the lease where there is none; False where the store cannot tell. Raises FileExistsError."""
    try:
        lease.fs.pipe_file(lease.path, _content(holder), mode="create")
    except (TypeError, NotImplementedError, ValueError):
        return False
    return True


def _write(lease: UPath, holder: Holder) -> None:
    atomic.write_whole(lease, _content(holder))


def _content(holder: Holder) -> bytes:
    return json.dumps(asdict(holder) | {"renewed": time.time()}, indent=1).encode()


def _read(lease: UPath) -> Holder | None:
    """The holder that the lease names; None where there is no lease, or a broken one.

    Raises whatever the store does where it cannot tell: that the lease is not there must not be concluded from it.
    """
    try:
        # Not opened as a file: of one that was listed before, an object store's client knows an older version.
        content = lease.fs.cat_file(lease.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _is_same(one: Holder, other: Holder) -> bool:
    return (one.run_id, one.host, one.pid, one.since) == (other.run_id, other.host, other.pid, other.since)


def _start_of(pid: int) -> float | None:
    """When a process of this host started, in seconds since 1970; None where there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
