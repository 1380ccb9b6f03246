"""`wbc count` where the extra `fast` is not installed: what asks for it is refused, what need not have it goes on."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from answers import refused
from fixture_types import Wbc
from painted import make_slide
from upath import UPath

from wbc.models import engines


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    engines.ready_detector.cache_clear()
    yield
    engines.ready_detector.cache_clear()


def test_openvino_without_the_extra_is_wrong_usage_and_costs_nothing(
    wbc: Wbc, count: Wbc, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    count(slides, out)
    make_slide(UPath(slides / "s3"), 1)
    stood = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for place in (out, tmp_path / "new"):
        on_a_cluster = count(slides, place, "--engine", "openvino")
        for told in (on_a_cluster, wbc("count", slides, "--out", place, "--engine", "openvino")):
            assert refused(told).endswith("engine 'openvino' is not installed: pip install 'wbc[fast]'")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == stood
    assert not list((tmp_path / "new").rglob("*.parquet"))


def test_auto_without_the_extra_is_torch_and_the_row_says_so(count: Wbc, tmp_path: Path) -> None:
    make_slide(UPath(tmp_path / "slides" / "s1"), 1)
    done = count(tmp_path / "slides", tmp_path / "out", "--detector", "bundled:detector", "--um-per-px", 0.2)
    assert done.exit_code == 0, done.output
    assert list(pd.read_parquet(tmp_path / "out" / "slides")["engine"]) == ["torch"]
