"""Counts with a detector that finds painted discs, and what they must not leave behind."""

import atexit
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from upath import UPath

from benchmarks.counted import read_tables
from wbc.counting.slide import Job, WorkSettings, count_slide
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.storage.slides import discover
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide

DARK_CARD = ModelCard(
    name="painted",
    version="1",
    task="detector",
    builder="dark_regions",
    arguments={"level": 0.5, "smallest_px": 12},
    classes=("rbc",),
    um_per_px=0.2,
    input_px=0,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    sha256="",
)


@cache
def dark_folder() -> Path:
    """The folder of the detector, which goes when the tests are over."""
    root = tempfile.mkdtemp(prefix="wbc-tests-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    registry.save(Path(root, "dark_regions"), builders.build(DARK_CARD), DARK_CARD)
    return Path(root, "dark_regions")


def make_job(out: UPath, **changes: Any) -> Job:
    """A count into `out` with that detector, blood's taxonomy and two fields a chunk; `changes` are `Job`'s."""
    ref, _ = registry.resolve(str(dark_folder()), "detector")
    options: dict[str, Any] = {
        "detector": ref,
        "classifier": None,
        "taxonomy": load_taxonomy("blood"),
        "work": WorkSettings(chunk_fields=2),
        "device": "cpu",
    }
    return Job(out, **options | changes)


def counted_on_threads(slides: UPath, out: UPath) -> dict[str, pd.DataFrame]:
    """The tables of slides counted by the library alone, without Prefect and Dask."""
    job = make_job(out, work=WorkSettings())
    with ThreadPoolExecutor(2) as executor:
        for slide in discover(slides):
            count_slide(slide, job, executor)
    return read_tables(out)


def temporaries(out: UPath) -> list[str]:
    """What a run has no business to leave in OUT: half-written files and pixels."""
    files = (p for p in out.rglob("*") if p.is_file())
    return sorted(str(p) for p in files if p.name.endswith(".tmp") or ".zarr/" in str(p) or "pixels/" in str(p))


def only(root: UPath) -> Slide:
    """The one slide below a folder."""
    (slide,) = discover(root)
    return slide


def row(out: UPath, slide_id: str = "s1") -> dict[str, Any]:
    """A slide's row in `slides`, as pandas reads it."""
    return dict(pd.read_parquet(BytesIO((out / "slides" / f"{slide_id}.parquet").read_bytes())).iloc[0])
