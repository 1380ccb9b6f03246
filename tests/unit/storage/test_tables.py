"""Tables of a count: exact columns, read back as they went, impossible ones refused."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counted import called
from sample_counts import contents, count, read_differentials, sample_tables, slide_row
from upath import UPath

from wbc.storage.categorical import Categorical
from wbc.storage.counts import commit, committed_count_id, read_slide_row
from wbc.storage.layout import TABLES, Layout
from wbc.storage.names import safe_name
from wbc.storage.tables import cells_table, differentials_table
from wbc.types import Differential


@pytest.fixture
def local_out(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "out")


def test_columns_and_types_are_the_contract(local_out: UPath) -> None:
    count(local_out, "c1", 5)
    schemas = {kind: pq.read_schema(Layout(local_out).table(kind, "s1")) for kind in TABLES}
    columns = {kind: [f"{column.name}: {column.type}" for column in schema] for kind, schema in schemas.items()}
    stages = ", ".join(f"{stage}: double" for stage in ("decode", "store", "detect", "classify", "write", "total"))
    assert columns["cells"] == [
        *("slide_id: string", "field: string", "cell_id: int32"),
        *("x0: float", "y0: float", "x1: float", "y1: float"),
        "cell_type: dictionary<values=string, indices=int32, ordered=0>",
        *("score: float", "type_score: float"),
        "second_type: dictionary<values=string, indices=int32, ordered=0>",
        "second_score: float",
        "predicted_type: dictionary<values=string, indices=int32, ordered=0>",
        *("corrected_by: string", "corrected_at: timestamp[us, tz=UTC]"),
    ]
    assert columns["detections"] == [
        *("slide_id: string", "field: string", "detection_id: int32"),
        *("x0: float", "y0: float", "x1: float", "y1: float"),
        "detector_class: dictionary<values=string, indices=int32, ordered=0>",
        *("score: float", "kinds: list<element: string>", "probabilities: list<element: halffloat>"),
        "detections_id: dictionary<values=string, indices=int32, ordered=0>",
        *("distance: float", "print: string"),
    ]
    assert columns["fields"] == [
        *("slide_id: string", "field: string", "digest: string", "height_px: int64", "width_px: int64"),
        *("um_per_px: double", "scale_from: string", "n_cells: int64"),
        *("status: string", "reason: string", "duplicate_of: string"),
        "seconds: struct<decode: double, store: double, detect: double, classify: double>",
        *("red_cell_um: double", "unfamiliarity: double"),
    ]
    assert columns["differentials"] == [
        *("slide_id: string", "cell_type: string", "lineage: string", "count: int64", "in_differential: bool"),
        *("percent: double", "ci_low: double", "ci_high: double"),
        *("percent_corrected: double", "low: double", "high: double"),
    ]
    assert columns["slides"] == [
        *("slide_id: string", "count_id: string", "counted_at: timestamp[us, tz=UTC]"),
        *("n_fields: int64", "n_fields_failed: int64"),
        "failed_fields: list<element: struct<field: string, reason: string>>",
        *("n_cells: int64", "n_differential: int64", "n_unidentified: int64"),
        *("um_per_px: double", "scale_from: string"),
        *("me_ratio: double", "me_low: double", "me_high: double", "nrbc_per_100_wbc: double"),
        "flags: list<element: string>",
        *("detector: string", "classifier: string", "taxonomy: string", "wbc_version: string"),
        f"seconds: struct<{stages}>",
        *("min_score: double", "taxonomy_digest: string", "counting_version: int64", "precision: string"),
        *("cells_digest: string", "differentials_digest: string"),
        "reason: string",
        "duplicate_fields: list<element: struct<field: string, same_as: string>>",
        "source: string",
        *("run_id: string", "fields_digest: string", "detections_digest: string"),
        "unfamiliarity: double",
        *("cells: string", "n_corrected: int64", "corrections_digest: string"),
        *("engine: string", "red_cell_um: double", "n_seen_again: int64"),
    ]


def test_tables_are_compressed_with_what_pays(local_out: UPath) -> None:
    count(local_out, "c1", 1001)
    files = {name: pq.ParquetFile(Layout(local_out).table(name, "s1")) for name in ("cells", "slides")}
    codecs = {name: file.metadata.row_group(0).column(0).compression for name, file in files.items()}
    assert codecs == {"cells": "ZSTD", "slides": "SNAPPY"}


def test_pandas_reads_cells_of_all_slides(local_out: UPath) -> None:
    count(local_out, "c1", 4, "s1")
    count(local_out, "c1", 2, safe_name("_s2"))
    frame = pd.read_parquet(Path(local_out.path) / "cells")
    assert frame["slide_id"].tolist() == ["%5Fs2"] * 2 + ["s1"] * 4
    last = frame.iloc[-1]
    assert last[["field", "cell_id", "x0", "y0", "x1", "y1", "cell_type"]].tolist() == [
        "b c.jpg",
        3,
        12,
        13,
        14,
        15,
        "eosinophil",
    ]
    assert (last["score"], last["type_score"]) == (1.0, 0.5)
    assert frame["type_score"].isna().tolist() == [False, True, False, True, True, False]
    assert frame["cell_type"].value_counts().to_dict() == {"eosinophil": 3, "rbc": 3}


def test_percent_without_a_denominator_is_null(out: UPath) -> None:
    count(out, "c1", 5)
    frame = read_differentials(out).set_index("cell_type")
    assert frame[["count", "percent", "ci_low", "ci_high"]].iloc[0].to_list() == [5, 100, 20, 100]
    assert frame[["percent", "ci_low", "ci_high"]].isna().all(axis=1).to_dict() == {
        "segmented_neutrophil": False,
        "rbc": True,
    }
    assert frame["in_differential"].tolist() == [True, False]


def test_slide_row_comes_back_as_it_went(out: UPath) -> None:
    for row in (
        slide_row("c1", 5),
        replace(slide_row("c2", 0), um_per_px=None, scale_from=None, failed_fields=(), flags=()),
    ):
        committed = commit(out, sample_tables(0), row)
        assert read_slide_row(out, "s1") == committed
        assert replace(committed, **{f"{name}_digest": None for name in TABLES if name != "slides"}) == row


def test_slide_row_that_is_missing_or_broken(out: UPath) -> None:
    with pytest.raises(FileNotFoundError):
        read_slide_row(out, "s1")
    count(out, "c1", 5)
    Layout(out).table("slides", "s1").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"s1\.parquet.*holds no table of slides"):
        read_slide_row(out, "s1")


def test_no_cells_and_no_kinds(out: UPath) -> None:
    empty = Differential("blood", (), 0, 0, 0, None, None, None, None, ("no_cells",))
    commit(out, sample_tables(0) | {"differentials": differentials_table("s1", empty)}, slide_row("c1", 0))
    assert committed_count_id(out, "s1") == "c1"
    assert read_differentials(out).empty


def test_field_name_that_is_no_utf8_is_written() -> None:
    boxes, scores = np.zeros((1, 4), np.float32), np.zeros(1, np.float32)
    table = cells_table("s1", Categorical.of(["a\udcff.jpg"]), boxes, scores, called(["rbc"], [0.5]))
    assert table["field"].to_pylist() == ["a\\udcff.jpg"]


def test_impossible_tables_are_refused(out: UPath) -> None:
    two = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="1 fields, boxes"):
        cells_table("s1", Categorical.of("a"), np.zeros((2, 4), np.float32), two, called(["rbc"], [0.5]))
    with pytest.raises(ValueError, match="a table of cells has columns"):
        commit(out, sample_tables(1) | {"cells": pa.table({"x": [1]})}, slide_row("c1", 1))
    for unsafe in ("a/b", "_a"):
        with pytest.raises(ValueError, match=f"'{unsafe}' is no safe file name"):
            commit(out, sample_tables(1), slide_row("c1", 1, unsafe))
    assert not out.exists() or contents(out) == {}
    with pytest.raises(ValueError, match=r"count_id '\.\./x'"):
        slide_row("../x", 1)
    with pytest.raises(ValueError, match="no time zone"):
        replace(slide_row("c1", 1), counted_at=datetime(2026, 1, 1))
