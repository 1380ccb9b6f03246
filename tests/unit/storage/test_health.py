"""What is not in order in an OUT is named, and nothing else."""

from fixture_types import CommitSlide
from upath import UPath

from wbc.storage.health import inspect


def test_an_out_of_finished_counts_is_sound(out: UPath, commit_slide: CommitSlide) -> None:
    assert not list(inspect(out))
    commit_slide(out, "s1", ["rbc"])
    assert not list(inspect(out))


def test_what_killed_runs_left_and_what_stands_alone_is_named(out: UPath, commit_slide: CommitSlide) -> None:
    for slide_id in ("s1", "s2", "s3"):
        commit_slide(out, slide_id, ["rbc"])
    (out / "differentials" / "s1.parquet").write_bytes(b"PAR1")
    (out / "slides" / "s2.parquet").unlink()
    (out / "detections" / "s3.parquet").unlink()
    half_written = out / "detections" / ".s4.parquet.0a1b2c3d.tmp"
    half_written.write_bytes(b"PAR")
    facts = {UPath(f.path).name if "s4" in f.path else f.path: f.fact for f in inspect(out)}
    assert set(facts) == {
        str(out / "slides" / "s1.parquet"),
        str(out / "slides" / "s3.parquet"),
        *(str(out / table / "s2.parquet") for table in ("cells", "differentials", "fields", "detections")),
        half_written.name,
    }
    assert "cannot be read" in facts[str(out / "slides" / "s1.parquet")]
    assert "detections" in facts[str(out / "slides" / "s3.parquet")]
