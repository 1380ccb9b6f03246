"""Data that change while they are read are refused by name."""

from pathlib import Path

import numpy as np
import pytest

from wbc.datasets.steady import arrays_digest, steady


def test_files_that_stay_as_they_are_are_steady(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("x")
    with steady(tmp_path, tmp_path / "none"):
        (tmp_path / "a.jpg").read_text()


@pytest.mark.parametrize("name", ["a.jpg", "new.jpg"])
def test_a_file_that_is_written_meanwhile_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(ValueError, match=rf"{name} changed while the data were read"), steady(tmp_path):
        (tmp_path / name).write_text("other")


def test_a_file_that_goes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(ValueError, match=r"a\.jpg changed"), steady(tmp_path / "a.jpg"):
        (tmp_path / "a.jpg").unlink()


def test_a_digest_tells_content_shape_and_order() -> None:
    one, other = np.arange(6), np.arange(6, dtype=np.float32)
    digests = [
        arrays_digest([one, other]),
        arrays_digest([other, one]),
        arrays_digest([one.reshape(2, 3), other]),
        arrays_digest([one]),
        arrays_digest([one, np.zeros((0, 4), np.float32)]),
    ]
    assert len(set(digests)) == len(digests)
    assert arrays_digest([np.arange(12)[::2]]) == arrays_digest([np.arange(0, 12, 2)])
