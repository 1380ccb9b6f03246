"""Taxonomies: the shipped ones, a laboratory's own file and what is wrong with it, coarse labels over fine classes."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from wbc.taxonomy import Taxonomy, check_classes, label_matrix, load_taxonomy, shipped_taxonomies

TEN_KINDS = (
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "band_neutrophil",
    "segmented_neutrophil",
    "eosinophil",
    "basophil",
    "lymphocyte",
    "monocyte",
    "erythroblast",
)
SHIPPED = ("asae2020", "blood", "marrow_icsh", "wang2021")

OWN = """
name = "own"
cell_types = [
  { name = "cell", abbreviation = "C", lineage = "myeloid", nucleated = true, in_differential = true },
  { name = "fine", abbreviation = "F", parent = "cell", lineage = "other", nucleated = true, in_differential = true },
  { name = "beside", abbreviation = "B", lineage = "erythroid", nucleated = true, in_differential = false },
]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_the_shipped_taxonomies_are_the_four() -> None:
    assert shipped_taxonomies() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_taxonomy_counts_the_bundled_models(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.name == name
    check_classes(taxonomy, ["rbc", "platelet", "wbc"], "detector")
    check_classes(taxonomy, [*TEN_KINDS, "blast", "neutrophil"], "classifier")
    for red_or_platelet in ("rbc", "platelet"):
        assert not taxonomy.cell_type(red_or_platelet).nucleated
    assert {taxonomy.cell_type(k).nucleated for k in TEN_KINDS} == {True}
    assert pickle.loads(pickle.dumps(taxonomy)) == taxonomy


@pytest.mark.parametrize("name", SHIPPED)
def test_a_cell_of_unnamed_kind_is_unidentified_and_in_the_denominator(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.resolve("wbc") == taxonomy.resolve("unidentified") == "unidentified"
    cell_type = taxonomy.cell_type("wbc")
    assert (cell_type.lineage, cell_type.nucleated, cell_type.in_differential, cell_type.me_side) == (
        "other",
        True,
        True,
        None,
    )


def test_the_tree_of_blood() -> None:
    blood = load_taxonomy("blood")
    assert blood.children("immature_granulocyte") == ("promyelocyte", "myelocyte", "metamyelocyte")
    assert blood.leaves("neutrophil") == ("segmented_neutrophil", "band_neutrophil")
    assert blood.leaves("monocyte") == ("monocyte",)
    assert blood.ancestors("band_neutrophil") == ("neutrophil",)
    assert blood.is_a("band_neutrophil", "neutrophil")
    assert not blood.is_a("neutrophil", "band_neutrophil")
    assert blood.nrbc == "erythroblast"
    assert not blood.cell_type("erythroblast").in_differential


def test_what_is_rare_in_blood_has_a_prior_and_in_marrow_nothing_is() -> None:
    blood = load_taxonomy("blood")
    assert [blood.prior(t) for t in ("myelocyte", "erythroblast", "blast", "lymphocyte", "wbc")] == [0.3] * 3 + [1] * 2
    assert {load_taxonomy("marrow_icsh").prior(kind) for kind in (*TEN_KINDS, "blast")} == {1.0}


def test_marrow_counts_what_icsh_counts() -> None:
    marrow = load_taxonomy("marrow_icsh")
    outside = {t.name for t in marrow.cell_types if t.nucleated and not t.in_differential}
    assert outside == {
        "megakaryocyte",
        "macrophage",
        "osteoblast",
        "osteoclast",
        "stromal_cell",
        "smudge_cell",
        "non_haemopoietic_cell",
    }
    neither = {t.name for t in marrow.cell_types if t.in_differential and t.me_side is None}
    assert neither == {"blast", "lymphoblast", "lymphocyte", "plasma_cell", "mast_cell", "unidentified"}
    assert [(t.cell_type, t.percent) for t in marrow.thresholds] == [("blast", 5), ("blast", 20), ("plasma_cell", 10)]


def test_asae2020_has_the_papers_fourteen_kinds() -> None:
    asae = load_taxonomy("asae2020")
    leaves = [t.abbreviation for t in asae.cell_types if t.in_differential and not asae.children(t.name)]
    assert " ".join(sorted(leaves)) == "MATL METM MONO MYEB MYEL ORTN OTHG OTHN PLAS POLN PRIL PROM SEGG STAG UNID"


def test_wang2021_takes_finer_kinds_as_its_seven_classes() -> None:
    wang = load_taxonomy("wang2021")
    assert {wang.resolve(k) for k in TEN_KINDS} == {"granulocyte", "erythrocyte", "lymphocyte", "monocyte"}
    assert wang.is_a("segmented_neutrophil", "granulocyte")
    check_classes(wang, ["granulocyte", "erythrocyte", "megakaryocyte", "plasma_cell", "other"], "the paper's")


def test_classes_that_the_taxonomy_does_not_know_are_named() -> None:
    with pytest.raises(ValueError, match=r"blood does not know these classes of my-model: mast_cell, plasma_cell$"):
        check_classes(load_taxonomy("blood"), ["rbc", "mast_cell", "lymphocyte", "plasma_cell"], "my-model")
    with pytest.raises(ValueError, match="blood does not know 'mast_cell'"):
        load_taxonomy("blood").resolve("mast_cell")


def test_a_coarse_label_covers_its_finer_classes() -> None:
    blood = load_taxonomy("blood")
    labels = ["neutrophil", "immature_granulocyte", "lymphocyte", "band_neutrophil"]
    matrix = label_matrix(blood, TEN_KINDS, labels)
    assert matrix.dtype == np.float32
    covered = [{k for k, one in zip(TEN_KINDS, row, strict=True) if one} for row in matrix.tolist()]
    assert covered == [
        {"band_neutrophil", "segmented_neutrophil"},
        {"promyelocyte", "myelocyte", "metamyelocyte"},
        {"lymphocyte"},
        {"band_neutrophil"},
    ]
    assert set(np.unique(matrix)) == {0, 1}


def test_labels_of_another_taxonomys_names_cover_classes_too() -> None:
    matrix = label_matrix(load_taxonomy("wang2021"), TEN_KINDS, ["granulocyte", "erythrocyte"])
    np.testing.assert_array_equal(matrix, [[1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])


def test_no_labels_is_an_empty_matrix() -> None:
    assert label_matrix(load_taxonomy("blood"), TEN_KINDS, []).shape == (0, 10)


def test_a_label_that_no_class_can_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="labels platelet, wbc cover none of the classes promyelocyte"):
        label_matrix(load_taxonomy("blood"), TEN_KINDS, ["lymphocyte", "platelet", "wbc"])


def test_a_laboratorys_own_file(tmp_path: Path) -> None:
    extras = OWN + 'thresholds = [{ cell_type = "cell", percent = 2.5 }]\nnrbc = "beside"\n[aliases]\nfoo = "fine"\n'
    own = load_taxonomy(written(tmp_path, extras))
    assert isinstance(own, Taxonomy)
    assert [t.name for t in own.cell_types] == ["cell", "fine", "beside", "not_a_white_cell", "unidentified"]
    assert own.cell_type("foo").abbreviation == "F"
    assert own.is_a("foo", "cell")
    assert own.thresholds[0].percent == 2.5


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('parent = "cell"', 'parent = "cel"', "fine: unknown parent 'cel'"),
        ('name = "cell", abb', 'name = "cell", parent = "fine", abb', "cycle: cell -> fine -> cell"),
        ('name = "beside"', 'name = "cell"', "cell is there twice"),
        ('name = "beside"', 'name = "Beside"', "'Beside' is not lower case words joined by underscores"),
        ('name = "beside"', 'name = "be side"', "'be side' is not lower case"),
        ('name = "beside"', 'name = "wbc"', "wbc is part of every taxonomy"),
        ('name = "beside"', 'name = "unidentified"', "unidentified is part of every taxonomy"),
        ('name = "beside"', 'name = "not_a_white_cell"', "not_a_white_cell is part of every taxonomy"),
        (
            'lineage = "erythroid"',
            'lineage = "red"',
            "cell_types[beside].lineage is 'red', none of 'myeloid', 'erythroid'",
        ),
        ('abbreviation = "B", ', "", "cell_types[beside].abbreviation is missing"),
        (
            'abbreviation = "B"',
            'abbreviation = "B", colour = "red"',
            "cell_types[beside].colour is unknown; the keys are name, abbreviation",
        ),
        ('abbreviation = "B"', "abbreviation = 7", "cell_types[beside].abbreviation is 7, not text"),
        ('name = "own"', "", ": name is missing"),
        ('name = "own"', 'name = "own"\nsides = 2', ": sides is unknown; the keys are name, cell_types"),
        ('name = "own"', 'name = "own', "line 2"),
        ('abbreviation = "B"', 'abbreviation = "B", me_side = "left"', "cell_types[beside].me_side is 'left', none of"),
        ('abbreviation = "B"', 'abbreviation = "B", me_side = "erythroid"', "only one side of M:E"),
        ('abbreviation = "C"', 'abbreviation = "C", me_side = "myeloid"', "cell is on M:E's myeloid side, and not all"),
        (
            "true, in_differential = false",
            "false, in_differential = true",
            "cell_types[beside]: a cell without a nucleus",
        ),
        ('"beside", abb', '"beside", parent = "cell", abb', "cell must be in the differential if, and only if"),
        ('name = "own"', 'name = "own"\nnrbc = "cell"', "nrbc 'cell' is no type outside the differential"),
        ('name = "own"', 'name = "own"\nnrbc = "x"', "nrbc 'x' is no type"),
        (
            'name = "own"',
            'name = "own"\nthresholds = [{ cell_type = "x", percent = 5 }]',
            "threshold of x: no such type",
        ),
        (
            'name = "own"',
            'name = "own"\nthresholds = [{ cell_type = "cell", percent = 100 }]',
            "thresholds[1]: 100.0 % of cell is no percentage",
        ),
        (
            'name = "own"',
            'name = "own"\nthresholds = [{ cell_type = "cell", percent = true }]',
            "thresholds[1].percent is True, not a number",
        ),
        ('name = "own"', 'name = "own"\naliases = { foo = "x" }', "alias foo: unknown cell type 'x'"),
        ('name = "own"', 'name = "own"\naliases = { cell = "beside" }', "alias cell is a cell type already"),
        ('name = "own"', 'name = "own"\naliases = { foo = 3 }', "aliases.foo is 3, not text"),
        ('name = "own"', 'name = "own"\npriors = { foo = 0.5 }', "prior of foo: no such cell type"),
        ('name = "own"', 'name = "own"\npriors = { cell = 0 }', "prior of cell is 0.0, not over 0 and up to 1"),
        ('name = "own"', 'name = "own"\npriors = { cell = 2 }', "prior of cell is 2.0, not over 0 and up to 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in OWN
    path = written(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"own\.toml: ") as caught:
        load_taxonomy(path)
    assert path in str(caught.value)
    assert reason in str(caught.value)


def test_a_file_without_types_or_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cell_types\[1\] is 'cell', not a table"):
        load_taxonomy(written(tmp_path, 'name = "own"\ncell_types = ["cell"]'))
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"own\.toml: .*decode"):
        load_taxonomy(str(tmp_path / "own.toml"))


def test_a_reference_to_nothing_says_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"taxonomy bloood: no such file.* asae2020, blood, marrow_icsh, wang2021"):
        load_taxonomy("bloood")
    with pytest.raises(ValueError, match="cannot be read"):
        load_taxonomy(str(tmp_path))
