"""Which slides need nothing."""

from pathlib import Path

import pytest
from upath import UPath

from wbc.counting import standing
from wbc.counting.job import Job
from wbc.models.registry import ModelRef
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide


def test_a_new_slide_is_known_for_one_without_hashing_its_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "is_count_of", lambda *_: pytest.fail("hashed"))
    job = Job(UPath(tmp_path), ModelRef("m", "1" * 64), None, load_taxonomy("blood"))
    assert not standing.stands(Slide("s1", ()), {"a.png": "0"}, job)
