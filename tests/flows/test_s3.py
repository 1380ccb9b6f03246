"""Slides and OUT in a bucket of an S3 server: the whole count by the command line, and its one writer."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock
from uuid import uuid4

import pandas as pd
import pytest
from jobs import counted_on_threads, temporaries
from painted import make_slide
from upath import UPath

from benchmarks.counted import read_tables
from wbc.storage.layout import Layout
from wbc.storage.lock import Holder, OutInUse, holding

pytestmark = pytest.mark.dask

ROOT = Path(__file__).parents[2]
SECONDS, N_SLIDES = 120, 6
Wbc = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def here(bucket: UPath) -> UPath:
    """A folder in the bucket."""
    return bucket / uuid4().hex


def listed_anew(path: UPath) -> UPath:
    """The same address for a client that knows of nothing yet, as in another process."""
    return UPath(str(path), skip_instance_cache=True)


def lease_of(out: UPath) -> dict[str, object] | None:
    lease = Layout(listed_anew(out)).lease()
    return json.loads(lease.read_bytes()) if lease.exists() else None


def test_a_run_whose_out_was_taken_over_learns_it_though_it_had_listed_the_lease_before(here: UPath) -> None:
    out = here / "out"
    with holding(out, "first") as hold:
        out.fs.find(Layout(out).lease().parent.path)
        other = replace(Holder.of_this_process("other"), host="elsewhere")
        Layout(listed_anew(out)).lease().write_bytes(json.dumps(asdict(other)).encode())
        with pytest.raises(OutInUse, match=r"taken over by .*run other .* on elsewhere"):
            hold.check()
    assert (lease_of(out) or {})["run_id"] == "other"


def test_a_lease_that_cannot_be_read_just_now_is_not_taken_for_none(
    here: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out"
    with holding(out, "first") as hold:
        with monkeypatch.context() as broken:
            broken.setattr(out.fs, "cat_file", Mock(side_effect=OSError(5, "no answer")))
            with pytest.raises(OSError, match="no answer"), holding(out, "second"):
                pass
            hold.check()
        assert (lease_of(out) or {})["run_id"] == "first"


@pytest.fixture
def wbc(prefect_server: str, dark_folder: Path, tmp_path: Path) -> Wbc:
    """Starts the command `wbc` as a process; a count's workers are threads of it."""
    site = tmp_path / "threads.toml"
    site.write_text(
        'class = "distributed.LocalCluster"\n[arguments]\nprocesses = false\nn_workers = 1\n'
        'threads_per_worker = 1\ndashboard_address = "127.0.0.1:0"\n'
    )
    options = ["--detector", str(dark_folder), "--classifier", "none", "--settings", str(site), "--device", "cpu"]
    environment = os.environ | {"PREFECT_API_URL": prefect_server}

    def start(verb: str, *words: object) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).parent / "wbc"), verb, *map(str, words)]
        command += options if verb == "count" else []
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )

    return start


def said(process: subprocess.Popen[str], status: int = 0) -> str:
    """What a command says to its end, one line."""
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, output
    return " ".join(output.split())


def killed_after_its_first_slide(process: subprocess.Popen[str], out: UPath, meanwhile: Callable[[], None]) -> None:
    """Stop a count that has written its first slide, call `meanwhile`, and kill it."""
    with process:
        deadline = time.monotonic() + SECONDS
        while not Layout(listed_anew(out)).slide_ids() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        meanwhile()
        process.kill()


def test_a_count_in_a_bucket_has_one_writer_outlives_it_and_equals_one_on_a_disk(
    here: UPath, wbc: Wbc, tmp_path: Path
) -> None:
    slides, out, local = here / "slides", here / "out", UPath(tmp_path / "slides")
    for i in range(N_SLIDES):
        for root in (slides, local):
            make_slide(root / f"slide-{i}", 3, cells=3 + 3 * i)
    slides.fs.touch(f"{slides.path}/slide-0/")  # a store's own page leaves such an object for a folder
    count = partial(wbc, "count", slides, "--out", out)

    first = count()
    refused = rf"wbc: OUT '{out}' is written by .* \(process {first.pid} on "
    killed_after_its_first_slide(first, out, lambda: assert_said(refused, said(count(), status=2)))
    assert lease_of(out) is not None
    done = Layout(listed_anew(out)).slide_ids()
    assert 1 <= len(done) < N_SLIDES
    for root in (slides, local):
        (root / done[0] / "f000.png").write_bytes((root / done[0] / "f001.png").read_bytes())

    output = said(count())
    assert_said("which is dead: it is taken over", output)
    assert_said(f"{done[0]}: counted", output)
    assert output.count(": unchanged:") == len(done) - 1
    assert lease_of(out) is None
    assert temporaries(listed_anew(out)) == []
    assert_equal(out, counted_on_threads(local, UPath(tmp_path / "out")))

    assert said(count()).count(": unchanged:") == N_SLIDES
    said(wbc("recount", out, "--min-score", "0.99"))
    row = pd.read_parquet(f"{out}/slides").set_index("slide_id").loc["slide-0"]
    assert row["min_score"] == pytest.approx(0.99)
    assert_said(f"slide-0 3 of 3 fields .* rbc {row['n_cells']} beside", said(wbc("show", out, "slide-0")))


def assert_equal(out: UPath, expected: dict[str, pd.DataFrame]) -> None:
    """The tables in OUT but for the address of the slides."""
    for name, table in read_tables(listed_anew(out)).items():
        columns = [column for column in table if column != "source"]
        pd.testing.assert_frame_equal(table[columns], expected[name][columns])


def assert_said(pattern: str, output: str) -> None:
    assert re.search(pattern, output), output
