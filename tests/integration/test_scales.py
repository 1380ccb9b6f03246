"""The scale belongs to the field: told by its file, else measured on the red cells of fields like it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import make_job
from painted import make_slide
from PIL import ExifTags, Image
from upath import UPath

from wbc.counting import worker
from wbc.counting.slide import Job, count_slide
from wbc.storage.counts import read_slide_row
from wbc.storage.images import camera_of
from wbc.storage.slides import discover
from wbc.storage.tables import SlideRow
from wbc.types import WHOLE_RED_CELL_UM

MEASURED = pytest.approx(WHOLE_RED_CELL_UM / 35, rel=0.05)  # of the painted cells, 35 px wide
Scales = dict[str, float]


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """The folder of a slide of four fields that show enough cells to tell their scale, each a few more."""
    return Path(make_slide(UPath(tmp_path / "slides" / "s1"), 4, cells=16).path)


@pytest.fixture
def count(
    fields: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[SlideRow, Scales]]:
    """Counts the slide; its row, and the µm per px that each field was counted at, by name."""
    used: Scales = {}

    def recorded(batch: Any, models: Any, job: Job) -> Any:
        for field in batch.fields:
            used[field.path.name] = field.um_per_px
        return counted(batch, models, job)

    counted = worker._detect
    monkeypatch.setattr(worker, "_detect", recorded)

    def made() -> tuple[SlideRow, Scales]:
        (slide,) = discover(UPath(fields))
        job = make_job(UPath(tmp_path / "out"))
        count_slide(slide, job, threads)
        return read_slide_row(job.out, "s1"), used

    return made


def tag(path: Path, um_per_px: float) -> None:
    """Turn a field into a TIFF that tells its scale."""
    picture = Image.open(path)
    picture.save(path.with_suffix(".tif"), resolution=1e4 / um_per_px, resolution_unit="cm")
    path.unlink()


def shrink(path: Path, factor: float) -> None:
    picture = Image.open(path)
    picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BOX).save(path)


def picture_of(fields: Path, i: int) -> Path:
    return fields / f"f{i:03d}.png"


def test_each_field_is_counted_at_the_scale_that_its_file_tells(fields: Path, count: Any) -> None:
    for i, um_per_px in enumerate((0.205, 0.205, 0.41, 0.41)):
        tag(picture_of(fields, i), um_per_px)
    row, used = count()
    assert used == pytest.approx({"f000.tif": 0.205, "f001.tif": 0.205, "f002.tif": 0.41, "f003.tif": 0.41}, rel=1e-3)
    assert (row.um_per_px, row.scale_from) == (pytest.approx(0.3075, rel=1e-3), "metadata")
    assert "mixed_scale" in row.flags


def test_one_tagged_field_does_not_set_the_scale_of_the_others(fields: Path, count: Any) -> None:
    tag(picture_of(fields, 0), 0.41)
    row, used = count()
    assert used.pop("f000.tif") == pytest.approx(0.41, rel=1e-3)
    assert list(used.values()) == [MEASURED] * 3
    assert (row.um_per_px, row.scale_from) == (MEASURED, "red_cells")
    assert "mixed_scale" in row.flags


def test_fields_of_other_sizes_are_measured_by_themselves(fields: Path, count: Any) -> None:
    for i in (2, 3):
        shrink(picture_of(fields, i), 0.6)
    row, used = count()
    assert used["f000.png"] == used["f001.png"] == MEASURED
    assert used["f002.png"] == used["f003.png"] == pytest.approx(WHOLE_RED_CELL_UM / 21, rel=0.12)
    assert "mixed_scale" in row.flags
    assert "scale_unknown" not in row.flags


def test_fields_alike_have_one_scale_and_no_flag(fields: Path, count: Any) -> None:
    row, used = count()
    assert len(set(used.values())) == 1
    assert not {"mixed_scale", "scale_unknown", "duplicate_fields"} & set(row.flags)


def test_a_field_that_shows_too_few_cells_takes_the_scale_of_files_like_it(
    fields: Path,
    count: Any,
) -> None:
    make_slide(UPath(fields), 2, cells=3)
    tag(picture_of(fields, 2), 0.2)
    tag(picture_of(fields, 3), 0.21)
    row, used = count()
    assert used["f000.png"] == used["f001.png"] == pytest.approx(0.205, rel=1e-3)
    assert "scale_unknown" not in row.flags


def test_one_group_without_a_scale_is_flagged(fields: Path, count: Any) -> None:
    make_slide(UPath(fields), 1, cells=3)
    shrink(picture_of(fields, 0), 0.9)
    row, used = count()
    assert used["f000.png"] is None
    assert used["f001.png"] == MEASURED
    assert "scale_unknown" in row.flags


@pytest.mark.parametrize("um_per_px", [0.015, 2.5])
def test_a_scale_that_no_microscope_has_is_not_believed(fields: Path, count: Any, um_per_px: float) -> None:
    tag(picture_of(fields, 0), um_per_px)
    _, used = count()
    assert used["f000.tif"] == MEASURED


def exif_of(make: str, model: str) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = make, model
    return exif


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_the_camera_is_read_from_exif(tmp_path: Path, suffix: str) -> None:
    picture, path = Image.new("RGB", (64, 64)), tmp_path / f"a{suffix}"
    picture.save(path, exif=exif_of("Basler", "acA2440"))
    assert camera_of(path.read_bytes()) == "Basler acA2440"
    picture.save(path)
    assert camera_of(path.read_bytes()) == ""
    assert camera_of(b"no picture") == ""


def test_fields_of_two_cameras_are_measured_apart(fields: Path, count: Any) -> None:
    for i in (2, 3):
        path = picture_of(fields, i)
        whole = np.asarray(Image.open(path).resize((192, 144), Image.Resampling.BOX))
        small = np.full((240, 320, 3), 235, np.uint8)
        small[:144, :192] = whole
        Image.fromarray(small).save(path, exif=exif_of("Basler", "acA2440"))
    row, used = count()
    assert used["f000.png"] == MEASURED
    assert used["f002.png"] == pytest.approx(WHOLE_RED_CELL_UM / 21, rel=0.12)
    assert "mixed_scale" in row.flags


# The same picture twice


def copy(path: Path) -> Path:
    twin = path.with_name("g.png")
    twin.write_bytes(path.read_bytes())
    return twin


def in_another_format(path: Path) -> Path:
    Image.open(path).save(path.with_suffix(".bmp"))
    return path.with_suffix(".bmp")


def link(path: Path) -> Path:
    path.with_name("g.png").symlink_to(path)
    return path.with_name("g.png")


def hard_link(path: Path) -> Path:
    path.with_name("g.png").hardlink_to(path)
    return path.with_name("g.png")


@pytest.mark.parametrize("twin_of", [copy, in_another_format, link, hard_link])
def test_a_picture_that_is_there_twice_counts_once(twin_of: Callable[[Path], Path], fields: Path, count: Any) -> None:
    alone, _ = count()
    names: Sequence[str] = sorted([picture_of(fields, 1).name, twin_of(picture_of(fields, 1)).name])
    row, used = count()
    assert row.n_cells == alone.n_cells
    assert (row.n_fields, row.n_fields_failed) == (5, 0)
    assert [(d.field, d.same_as) for d in row.duplicate_fields] == [(names[1], names[0])]
    assert "duplicate_fields" in row.flags
    assert "duplicate_fields" not in alone.flags
    assert used.keys() >= {names[0]}
