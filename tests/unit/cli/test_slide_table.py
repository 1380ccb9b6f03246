"""What a count says on a terminal: complete, legible, and safe whatever files are called."""

import io
import itertools
import re
from dataclasses import replace

import pytest
from fixture_types import Commit
from rich.console import Console, RenderableType

from wbc.cli.tables import failures, report_table
from wbc.counting.report import read_report
from wbc.counting.slide import SlideOutcome
from wbc.storage.tables import FailedField
from wbc.taxonomy import load_taxonomy, shipped_taxonomies


def printed(shown: RenderableType) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=80).print(shown)
    return sink.getvalue().splitlines()


def test_a_table_shows_counts_percentages_and_limits(commit: Commit) -> None:
    # 20 of 200: Rümke's table says 6.2 to 15.0.
    out = commit("slide-01", {"segmented_neutrophil": 170, "band_neutrophil": 10, "eosinophil": 20, "rbc": 4321})
    lines = [line.rstrip() for line in printed(report_table(read_report(out, "slide-01")))]
    rows = {line.split("  ")[0].strip(): line.split() for line in (raw.strip() for raw in lines) if line}
    assert lines[0].startswith("slide-01")
    assert "10 of 10 fields" in lines[0]
    assert "200 cells in the differential" in lines[0]
    assert rows["eosinophil"][1:] == ["20", "10.0", "6.2", "–", "15.0"]
    assert rows["neutrophil"][1:3] == ["180", "90.0"]
    assert rows["rbc"][1:] == ["4,321", "beside"]
    assert all(len(line) <= 80 for line in lines)


def rows_of(lines: list[str]) -> list[tuple[int, str, int]]:
    """The table's lines: how far each is indented, its cell type, its count."""
    fields = [(len(line) - len(line.lstrip()), re.split(r"\s{2,}", line.strip())) for line in lines[1:]]
    counts = [(indent, words) for indent, words in fields if len(words) > 1 and re.fullmatch(r"[\d,]+", words[1])]
    return [(indent, words[0], int(words[1].replace(",", ""))) for indent, words in counts]


def test_finer_types_stand_below_their_parent_and_only_where_one_was_counted(commit: Commit) -> None:
    out = commit("s", {"segmented_neutrophil": 5, "lymphocyte": 5})
    rows = rows_of(printed(report_table(read_report(out, "s"))))
    names = [name for _, name, _ in rows]
    assert names.index("segmented neutrophil") == names.index("neutrophil") + 1
    indent = {name: spaces for spaces, name, _ in rows}
    assert indent["segmented neutrophil"] > indent["neutrophil"] == indent["lymphocyte"]
    assert "band neutrophil" not in indent
    assert "basophil" in indent, "a type that was looked for and not found has limits worth knowing"
    assert "platelet" not in indent


def test_cells_that_may_be_either_of_two_types_have_a_line_of_their_own(commit: Commit) -> None:
    out = commit("s", {"segmented_neutrophil": 26, "band_neutrophil": 12, "neutrophil": 3, "lymphocyte": 41})
    lines = printed(report_table(read_report(out, "s")))
    assert rows_of(lines)[:4] == [
        (2, "neutrophil", 41),
        (4, "segmented neutrophil", 26),
        (4, "band neutrophil", 12),
        (4, "not told apart", 3),
    ]
    (line,) = (line.split() for line in lines if "not told apart" in line)
    assert line == ["not", "told", "apart", "3", "3.7"], "3 of 82"


@pytest.mark.parametrize("name", shipped_taxonomies())
def test_what_stands_below_a_type_adds_up_to_it(commit: Commit, name: str) -> None:
    taxonomy = load_taxonomy(name)
    cells = {cell_type.name: 2 + i for i, cell_type in enumerate(taxonomy.cell_types)}
    rows = rows_of(printed(report_table(read_report(commit("s", cells, taxonomy), "s"))))
    assert len(rows) >= len(taxonomy.cell_types)
    sums = 0
    for i, (indent, _, n) in enumerate(rows):
        below = list(itertools.takewhile(lambda row, indent=indent: row[0] > indent, rows[i + 1 :]))
        if below:
            sums += 1
            assert sum(m for spaces, _, m in below if spaces == below[0][0]) == n
    assert sums == sum(bool(taxonomy.children(t.name)) for t in taxonomy.cell_types)
    assert sum(n for indent, _, n in rows if indent == rows[0][0]) == sum(cells.values())


def test_a_laboratorys_own_taxonomy_is_shown_without_its_file(commit: Commit) -> None:
    own = replace(load_taxonomy("blood"), name="our_lab")
    text = "\n".join(printed(report_table(read_report(commit("s", {"eosinophil": 3}, own), "s"))))
    assert "eosinophil" in text
    assert "our_lab" in text
    assert "basophil" not in text


def test_ratios_flags_and_failed_fields_are_told(commit: Commit) -> None:
    marrow = load_taxonomy("marrow_icsh")
    failed = (FailedField("a\x1b[31m\n.jpg", "is empty"),)
    myeloid = next(t.name for t in marrow.cell_types if t.me_side == "myeloid" and not marrow.children(t.name))
    text = "\n".join(printed(report_table(read_report(commit("m", {myeloid: 30}, marrow, failed), "m"))))
    assert "M:E       undefined" in text
    assert "inf)" in text
    assert "below_500" in text
    assert "fields_failed" in text
    assert r"a\x1b[31m\n.jpg: is empty" in text
    assert "9 of 10 fields" in text

    blood = "\n".join(printed(report_table(read_report(commit("b", {"lymphocyte": 50, "erythroblast": 1}), "b"))))
    assert "2.0 per 100 white cells" in blood


def test_a_slide_without_cells_has_no_percentages(commit: Commit) -> None:
    text = "\n".join(printed(report_table(read_report(commit("s", {}), "s"))))
    assert "no_cells" in text
    assert "0.0" not in text
    assert "None" not in text


FAILED = (FailedField("f1.jpg", "is empty"),)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (SlideOutcome("s", "counted", 2, 9, (), 1.0), []),
        (SlideOutcome("s", "counted", 2, 9, FAILED, 1.0, "not annotated"), ["s: not annotated", "s: f1.jpg: is empty"]),
        (SlideOutcome("s", "failed", 2, 0, (), 1.0, "disk\nfull"), [r"s: not counted: disk\nfull"]),
    ],
)
def test_failures_name_slide_field_and_reason(outcome: SlideOutcome, expected: list[str]) -> None:
    assert failures(outcome) == expected


def test_corrected_percentages_stand_beside_the_plain_ones(commit: Commit) -> None:
    out = commit("s", {"segmented_neutrophil": 60, "lymphocyte": 35, "unidentified": 5, "rbc": 9})
    report = read_report(out, "s")
    assert "misnaming undone" not in "\n".join(printed(report_table(report)))
    rows = {row.cell_type: row for row in report.cell_types}
    rows["lymphocyte"] = replace(rows["lymphocyte"], percent_corrected=38.25, low=21.4, high=51.8)
    lines = printed(report_table(replace(report, cell_types=tuple(rows.values()))))
    ends = {re.split(r"\s{2,}", line.strip())[0]: line.rstrip() for line in lines}
    assert "misnaming undone" in "\n".join(lines)
    assert ends["lymphocyte"].endswith("38.2 (21 – 52)")
    assert ends["monocyte"].endswith("not measured")
    assert not ends["segmented neutrophil"].endswith("not measured")
    assert not ends["unidentified"].endswith("not measured")
    assert all(len(line) <= 80 for line in lines)
