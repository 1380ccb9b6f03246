"""A count's id stands for all that can change a cell, and for nothing else."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from wbc.cells.tiles import TileSettings
from wbc.counting import job as job_room
from wbc.counting.job import (
    LOWEST_SCORE,
    CountSettings,
    Job,
    WorkSettings,
    are_detections_of,
    count_id,
    detections_id,
    is_count_of,
)
from wbc.models.cards import ModelCard, Teaching
from wbc.models.registry import ModelRef
from wbc.taxonomy import CellType, Taxonomy, Threshold, load_taxonomy
from wbc.types import UM_PER_PX_RANGE, Precision, Slide

text = st.text("abcdefgh", min_size=1, max_size=8)
sides, numbers = st.integers(1, 4096), st.floats(0.01, 2.0)
rgb = st.tuples(numbers, numbers, numbers)
digests = st.dictionaries(text.map(lambda name: f"{name}.png"), st.text("0123456789abcdef", max_size=64), min_size=1)
# What each entry may be changed to; entries that change a cell, and entries that do not.
TILES = {
    "tile_px": sides,
    "overlap_um": numbers,
    "margin_px": numbers,
    "step_px": sides,
    "origin": st.tuples(sides, sides),
    "sought": st.sampled_from(["all", "white", "white_and_platelets"]),
}
SETTINGS = {"min_score": st.floats(0, 1), "look_fields": sides}
CARD = {
    "builder": text,
    "arguments": st.dictionaries(text, sides),
    "classes": st.lists(text, min_size=1, unique=True).map(tuple),
    "um_per_px": numbers,
    "input_px": sides,
    "mean": rgb,
    "std": rgb,
    "sha256": text,
    "threshold": st.floats(0, 1),
    "stranger_threshold": st.none() | st.floats(0, 1) | st.dictionaries(text, st.floats(0, 1)),
    "even_light": st.booleans(),
    "hue": st.none() | st.tuples(st.floats(0, 89), st.floats(90, 179)),
    "reference_sha256": text,
    "task": st.sampled_from(["detector", "classifier"]),
}
DESCRIPTION = {
    "name": text,
    "version": text,
    "dataset": text,
    "metrics": st.dictionaries(text, numbers),
    "code_revision": text,
    "credits": st.lists(text).map(tuple),
    "parents": st.lists(st.builds(ModelRef, text, text)).map(tuple),
    "taught": st.none() | st.builds(Teaching, text, text, sides, st.dictionaries(text, sides), st.just("fitted")),
}
WORK = {"least_fields": sides, "chunk_fields": sides, "chunk_px": sides, "batch_px": sides}
HOW = {
    "out": text.map(UPath),
    "device": st.sampled_from(["cpu", "cuda", "cuda:1"]),
    "engine": st.sampled_from(["auto", "torch", "openvino"]),
    "force": st.booleans(),
    "verify": st.booleans(),
    "keep_pixels": st.booleans(),
    "run_id": text,
}
CARD_NOW = ModelCard("n", "1", "detector", "b", {}, ("wbc",), 0.2, 0, (0.5,) * 3, (0.5,) * 3, "0" * 64)
BLOOD = load_taxonomy("blood")


def names(of: type) -> set[str]:
    return {field.name for field in fields(of)}


def test_every_entry_is_one_that_changes_a_cell_or_one_that_does_not() -> None:
    assert names(TileSettings) == set(TILES)
    assert names(CountSettings) == {"tiles", *SETTINGS}
    assert names(WorkSettings) == set(WORK)
    assert names(ModelCard) == {*CARD, *DESCRIPTION}
    assert names(Job) == {"detector", "classifier", "taxonomy", "settings", "work", *HOW}


def identity(
    card: Mapping[str, Any] = {},
    tiles: Mapping[str, Any] = {},
    count: Mapping[str, Any] = {},
    taxonomy: Taxonomy = BLOOD,
    um_per_px: float | None = None,
    sha256: Mapping[str, str] = {"a.png": "0"},
    **how: Any,
) -> str:
    model = ModelRef("m", replace(CARD_NOW, **card).digest)
    chosen = CountSettings(tiles=TileSettings(**tiles), **count)
    job = replace(Job(UPath("out"), model, model, taxonomy, chosen), **how)
    return id_of(Slide("s", (), um_per_px), sha256, job, "float32")


FORMATS: tuple[Precision | None, ...] = (
    *("float32", "bfloat16", "float32 on cuda", "bfloat16 on cuda", "mixed"),
    None,
)


def id_of(slide: Slide, sha256: Mapping[str, str], job: Job, precision: Precision | None) -> str:
    made_from = detections_id(slide, sha256, job, precision)
    return count_id(made_from, job.taxonomy, job.settings.min_score)


def one_of(entries: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(sorted(entries)).flatmap(lambda name: st.fixed_dictionaries({name: entries[name]}))


def two_of(entries: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[dict[str, Any], dict[str, Any]]]:
    pairs = st.sampled_from(sorted(entries)).flatmap(lambda name: st.tuples(*[one_of({name: entries[name]})] * 2))
    return pairs.filter(lambda pair: pair[0] != pair[1])


def test_what_ran_the_detector_is_part_of_the_id_and_a_count_by_any_stands() -> None:
    slide, model = Slide("s", ()), ModelRef("m", CARD_NOW.digest)
    job = Job(UPath("out"), model, None, BLOOD)
    made = [detections_id(slide, {}, job, "bfloat16", engine) for engine in ("torch", "openvino", "mixed")]
    ids = {count_id(made_from, BLOOD, job.settings.min_score) for made_from in made}
    assert len(ids) == 3
    assert all(is_count_of(own, slide, {}, replace(job, engine="torch")) for own in ids)


@settings(deadline=None)
@given(two_of(CARD), two_of(TILES), two_of(SETTINGS))
def test_what_can_change_a_cell_changes_the_id(card: Any, tiles: Any, count: Any) -> None:
    assert identity(card=card[0]) != identity(card=card[1])
    assert identity(tiles=tiles[0]) != identity(tiles=tiles[1])
    assert identity(count=count[0]) != identity(count=count[1])


@settings(deadline=None)
@given(one_of(DESCRIPTION), one_of(WORK), one_of(HOW))
def test_what_changes_no_cell_does_not(card: Any, work: Any, how: Any) -> None:
    assert identity(card=card) == identity(work=WorkSettings(**work)) == identity(**how) == identity()


@settings(deadline=None)
@given(digests, digests, st.floats(*UM_PER_PX_RANGE))
def test_fields_and_a_given_scale_change_it(one: dict[str, str], other: dict[str, str], um_per_px: float) -> None:
    assert (identity(sha256=one) == identity(sha256=other)) == (one == other)
    assert identity(sha256=dict(reversed(one.items()))) == identity(sha256=one)
    assert identity(um_per_px=um_per_px) != identity()


def changed_type(name: str, **changes: Any) -> Taxonomy:
    types = [replace(t, **changes) if t.name == name else t for t in BLOOD.cell_types]
    return replace(BLOOD, cell_types=tuple(types))


def test_rules_of_the_taxonomy_change_it_and_its_words_do_not() -> None:
    assert names(Taxonomy) == {"name", "cell_types", "thresholds", "nrbc", "note", "aliases", "priors"}
    assert names(CellType) == {
        *("name", "abbreviation", "parent", "lineage", "nucleated", "in_differential", "me_side")
    }
    rules = [
        load_taxonomy("wang2021"),
        replace(BLOOD, name="other"),
        replace(BLOOD, thresholds=(Threshold("lymphocyte", 50),)),
        replace(BLOOD, nrbc=None),
        replace(BLOOD, priors=()),
        replace(BLOOD, aliases=(("red", "rbc"),)),
        changed_type("rbc", lineage="lymphoid"),
        changed_type("rbc", nucleated=True),
    ]
    ids = {identity(taxonomy=taxonomy) for taxonomy in [BLOOD, *rules]}
    assert len(ids) == 1 + len(rules)
    assert identity(taxonomy=replace(BLOOD, note="reads well")) == identity()
    assert identity(taxonomy=changed_type("rbc", abbreviation="XYZ")) == identity()


def test_models_number_format_and_counting_version_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ModelRef("m", "1" * 64), ModelRef("m", "2" * 64)
    job = Job(UPath("out"), one, one, BLOOD)
    slide, sha256 = Slide("s", ()), {"a.png": "0"}
    jobs = [job, replace(job, detector=other), replace(job, classifier=other), replace(job, classifier=None)]
    ids = [id_of(slide, sha256, j, f) for j in jobs for f in FORMATS]
    assert len(set(ids)) == 24
    assert all(is_count_of(own_id, slide, sha256, job) for own_id in ids[:6])
    assert not any(is_count_of(own_id, slide, sha256, job) for own_id in [None, *ids[6:]])
    assert id_of(slide, sha256, replace(job, detector=replace(one, reference="n")), "float32") == ids[0]
    monkeypatch.setattr(job_room, "COUNTING_VERSION", job_room.COUNTING_VERSION + 1)
    assert not any(is_count_of(own_id, slide, sha256, job) for own_id in ids)


def test_scores_and_taxonomies_are_counted_from_the_same_detections() -> None:
    model, slide, sha256 = ModelRef("m", "1" * 64), Slide("s", ()), {"a.png": "0"}
    job = Job(UPath("out"), model, model, BLOOD)
    own = detections_id(slide, sha256, job, "float32")
    for score in (LOWEST_SCORE, 0.3, 1.0):
        other = replace(job, settings=CountSettings(min_score=score), taxonomy=load_taxonomy("wang2021"))
        assert are_detections_of(own, slide, sha256, other)
        assert not is_count_of(count_id(own, BLOOD, 0.7), slide, sha256, other)
    others = [
        replace(job, settings=CountSettings(min_score=LOWEST_SCORE / 2)),
        replace(job, settings=CountSettings(look_fields=2)),
        replace(job, settings=CountSettings(tiles=TileSettings(margin_px=5))),
        replace(job, detector=ModelRef("m", "2" * 64)),
        replace(job, classifier=None),
    ]
    assert not any(are_detections_of(own, slide, sha256, other) for other in others)
    assert not are_detections_of(own, slide, {"a.png": "1"}, job)
    assert not are_detections_of(own, replace(slide, um_per_px=0.2), sha256, job)
    assert not are_detections_of(None, slide, sha256, job)


@pytest.mark.parametrize(("field_px", "fields"), [(640 * 480, 8), (2560 * 1920, 2), (20_000 * 20_000, 1), (0, 8)])
def test_large_fields_come_in_short_chunks(field_px: int, fields: int) -> None:
    assert WorkSettings().fields_at_once(field_px) == fields


def test_calls_grow_where_a_thread_has_many_to_come_and_no_further() -> None:
    few, many, very_many = (WorkSettings().for_run(n, 2) for n in (60, 1_000, 1_000_000))
    assert few == WorkSettings()
    assert many.fields_at_once(2560 * 1920) == 25
    assert very_many.fields_at_once(2560 * 1920) == very_many.chunk_fields == 25
    assert WorkSettings().for_run(1_000, 10).fields_at_once(2560 * 1920) == 5
    assert WorkSettings().for_run(1_000, 10).chunk_fields == WorkSettings().chunk_fields
    assert WorkSettings().for_run(60, 2, gpus=True).fields_at_once(2560 * 1920) == 8
    assert (few.read_at_once, very_many.read_at_once) == (few.chunk_fields, 50)
