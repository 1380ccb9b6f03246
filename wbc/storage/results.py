"""The folder OUT that a count's results go to: whether it can take them, and that nothing half-written stays there."""

import os
from pathlib import Path, PurePosixPath

from upath import UPath

from wbc.storage import files

# What a count makes in OUT, beside the pixels.
ALWAYS_MADE = ("cells", "differentials", "slides", ".wbc")
FOLDERS = (*ALWAYS_MADE, "history", "annotated")


def check_apart(slides: UPath, out: UPath) -> None:
    """Raises ValueError where the slides and the results in OUT would lie among each other.

    In SLIDES and below it, drawings and pixels would be found as slides by the next run; slides in a folder that tables
    go to would keep readers of that folder from reading it.
    """
    if _holds(slides, out):
        raise ValueError(f"OUT {str(out)!r} lies in SLIDES {str(slides)!r}: the next run would count its results")
    if any(_holds(out / name, slides) for name in FOLDERS):
        raise ValueError(f"SLIDES {str(slides)!r} lies where the results in OUT {str(out)!r} go")


def _holds(folder: UPath, path: UPath) -> bool:
    """Whether `path` is `folder` or lies below it, by whatever links a local one is reached."""
    local, other = files.local_path(folder), files.local_path(path)
    if local is not None and other is not None:
        return Path(os.path.realpath(other)).is_relative_to(os.path.realpath(local))
    return folder.fs == path.fs and PurePosixPath(path.path).is_relative_to(folder.path)


def check_writable(out: UPath) -> None:
    """Make OUT and what every count writes to, a byte into each. Raises OSError, naming what cannot be written."""
    for name in ALWAYS_MADE:
        with files.naming(out / name, "results cannot be written here"):
            files.write_temporary(out / name / "probe", b"\0", durable=False).unlink()


def remove_temporaries(out: UPath) -> None:
    """Remove what a killed run left half-written in OUT: tables, stamps and drawings."""
    for name in FOLDERS:
        files.remove_temporaries(out / name)
