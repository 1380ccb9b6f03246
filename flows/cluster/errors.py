"""What can go wrong with a cluster and the calls that run on it: whether to try again, and the words for people."""

import errno

from wbc.storage.stores import is_from_a_store

# Errors of the operating system that no second try mends.
PERMANENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


class ClusterError(ValueError):
    """A cluster that cannot be used the way it was asked for, with the reason."""


def worth_retrying(error: object) -> bool:
    """Whether a stage that ended in `error` may work next time: a file system or a network had a bad moment.

    So may one whose worker died, perhaps of another slide's chunk.
    """
    from distributed import KilledWorker

    if isinstance(error, OSError):
        return error.errno not in PERMANENT
    return isinstance(error, KilledWorker) or (isinstance(error, Exception) and is_from_a_store(error))


def reason(error: BaseException) -> str:
    """Why a slide failed, in one line for people."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        n = error.allowed_failures + 1
        return f"a worker died {n} times in a row while it worked on this slide (out of memory, or a library crashed)"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())
