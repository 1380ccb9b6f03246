"""A laboratory names some of its cells, and has a model that names the others as it does."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from answers import refused
from fixture_types import Wbc
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from wbc.cells.classify import features
from wbc.counting.slide import Job, WorkSettings, count_slide
from wbc.datasets.counted_cells import cut_cells, read_cells, slide_rows, white_cells
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.last_layer import last_layer, with_last_layer
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells, read_reference_cells
from wbc.storage.counts import read_table
from wbc.storage.slides import discover
from wbc.taxonomy import load_taxonomy
from wbc.training import body, teaching

CLASSES = ("lymphocyte", "segmented_neutrophil", "band_neutrophil", "eosinophil")
# What the laboratory's stain makes of each kind; the classifier has never seen any of it.
COLOURS = {"lymphocyte": (70, 30, 140), "segmented_neutrophil": (120, 60, 90), "eosinophil": (170, 40, 20)}
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A detector that takes dark discs for white cells, and a classifier that nobody trained."""
    folder: Path = tmp_path_factory.mktemp("models")
    settings = {"level": 0.62, "smallest_px": 12}
    detector = ModelCard("d", "1", "detector", "dark_regions", settings, ("wbc",), 0.2, 0, HALF, HALF, "")
    registry.save(folder / "detector", builders.build(detector), detector)
    torch.manual_seed(3)
    settings = {"backbone": "test_efficientnet"}
    classifier = ModelCard("c", "1", "classifier", "crop_classifier", settings, CLASSES, 0.25, 32, HALF, HALF, "")
    registry.save(folder / "classifier", builders.build(classifier), replace(classifier, credits=("nobody",)))
    return {name: folder / name for name in ("detector", "classifier")}


def paint_slide(folder: Path, n_fields: int = 4) -> None:
    """Fields of 15 cells each, five of each kind, at 0.2 µm per px; no two fields are alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(n_fields)
    y, x = np.mgrid[:200, :320]
    for i in range(n_fields):
        pixels = np.full((200, 320, 3), 225, np.uint8)
        pixels[:] = pixels + rng.integers(0, 8, pixels.shape).astype(np.uint8)
        for k in range(15):
            dx, dy = rng.integers(-9, 10, 2)
            cx, cy, kind = 30 + 60 * (k % 5) + dx, 35 + 60 * (k // 5) + dy, list(COLOURS)[k // 5]
            inside = (x - cx) ** 2 + (y - cy) ** 2 <= 17**2
            pixels[inside] = np.clip(np.array(COLOURS[kind]) + rng.integers(-12, 13, (int(inside.sum()), 3)), 0, 255)
        Image.fromarray(pixels).save(folder / f"f{i}.png")


def true_kind(cell: Mapping[str, object]) -> str:
    """What a person sees: kinds lie in rows."""
    return list(COLOURS)[int(((float(str(cell["y0"])) + float(str(cell["y1"]))) / 2 - 5) // 60)]


def count(slides: Path, out: Path, models: Mapping[str, Path], classifier: Path | None = None) -> None:
    detector, _ = registry.resolve(str(models["detector"]), "detector")
    named_by, _ = registry.resolve(str(classifier or models["classifier"]), "classifier")
    job = Job(UPath(out), detector, named_by, load_taxonomy("blood"), work=WorkSettings(chunk_fields=2), device="cpu")
    with ThreadPoolExecutor(1) as pool:
        for slide in discover(UPath(slides)):
            outcome = count_slide(replace(slide, um_per_px=0.2), job, pool)
            assert outcome.n_cells == 15 * len(slide.field_paths)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for name, n_fields in (("monday", 4), ("tuesday", 3)):
        paint_slide(tmp_path / "slides" / name, n_fields)
    return tmp_path / "slides"


@pytest.fixture
def out(slides: Path, models: Mapping[str, Path], tmp_path: Path) -> Path:
    count(slides, tmp_path / "out", models)
    return tmp_path / "out"


def right(out: Path) -> float:
    cells = white_cells(read_cells(UPath(out), ["monday", "tuesday"]))
    kinds = [true_kind(cell) for cell in cells.to_dict("records")]
    return float((cells["cell_type"] == kinds).mean())


def fill_in(table: Path, name: Callable[[Mapping[str, str]], str] = true_kind, most: int = 1000) -> None:
    """Write into the column cell_type as a person does in a spreadsheet."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:most]:
        row["cell_type"] = name(row)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def proposed(wbc: Wbc, out: Path, model: Path, *options: object) -> Path:
    result = wbc("adapt", out, "--out", model, *options)
    assert result.exit_code == 0, result.output
    return model / "cells.csv"


def test_a_laboratory_teaches_a_classifier_its_stain(
    wbc: Wbc, slides: Path, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    before, model = right(out), tmp_path / "ours"
    table = proposed(wbc, out, model, "--per-kind", 15)
    rows = pd.read_csv(table)
    assert rows.columns[:7].tolist() == [
        *("number", "slide_id", "field", "cell_id", "predicted_type", "type_score", "cell_type")
    ]
    assert rows["number"].tolist() == list(range(1, len(rows) + 1))
    assert rows["cell_type"].isna().all()
    with Image.open(model / "cells.jpg") as sheet:
        assert sheet.height > -(-len(rows) // 8) * 160

    fill_in(table, lambda row: true_kind(row).replace("segmented_", "").capitalize())  # coarse, and as a person writes
    result = wbc("adapt", out, "--names", table, "--out", model, "--by", "Ada")
    assert result.exit_code == 0, result.output
    assert "neutrophil" in result.output
    assert f"count theirs with {models['classifier']}" in result.stderr
    card = registry.read_card(str(model))
    assert card.taught is not None
    assert (card.taught.by, card.taught.cells, card.taught.last_layer) == ("Ada", len(rows), "fitted")
    others = len(white_cells(read_cells(UPath(out), ["monday", "tuesday"]))) - len(rows)
    assert card.taught.unnamed == others > 0
    assert f"learnt from {others} cells of the same slides that have no name, too" in result.output
    assert card.taught.out == str(out)
    assert card.parents[0] == registry.resolve(str(models["classifier"]), "classifier")[0]
    assert card.classes == CLASSES
    assert card.credits == ("nobody",)

    count(slides, tmp_path / "again", models, model)
    cells = white_cells(read_cells(UPath(tmp_path / "again"), ["monday", "tuesday"]))
    named = [
        load_taxonomy("blood").is_a(kind, true_kind(cell).replace("segmented_", ""))
        for kind, cell in zip(cells["cell_type"], cells.to_dict("records"), strict=True)
    ]
    assert np.mean(named) > 0.95 > 0.6 > before


def test_its_own_cells_tell_how_a_taught_model_misnames(
    wbc: Wbc, slides: Path, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    table = proposed(wbc, out, tmp_path / "ours", "--per-kind", 100)
    fill_in(table)
    facts = json.loads(wbc("adapt", out, "--names", table, "--out", tmp_path / "ours", "--json").stdout)
    assert facts["tells_misnaming"]
    ref, _ = registry.resolve(str(tmp_path / "ours"), "classifier")
    cells = read_reference_cells(ref)
    assert cells is not None
    assert (cells.own, set(cells.laboratories)) == (str(out), {str(out)})
    rows = pd.read_csv(table)
    assert cells.cell_types == tuple(rows.sort_values(["slide_id", "field"], kind="stable")["cell_type"])
    counted = white_cells(read_cells(UPath(out), ["monday", "tuesday"]))["cell_type"].value_counts()
    assert cells.weights is not None
    assert cells.weights.sum() == pytest.approx(sum(counted[kind] for kind in set(rows["predicted_type"])))
    count(slides, tmp_path / "again", models, tmp_path / "ours")
    told = read_table(UPath(tmp_path / "again"), "differentials", "monday").to_pandas().set_index("cell_type")
    for kind in ("lymphocyte", "eosinophil", "neutrophil"):
        assert told.loc[kind, "low"] < 100 / 3 < told.loc[kind, "high"]


def test_cells_that_somebody_chose_leave_it_to_the_parents_strangers(
    wbc: Wbc, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    ref = registry.resolve(str(models["classifier"]), "classifier")[0]
    shutil.copytree(models["classifier"], tmp_path / "parent")
    others = ReferenceCells(np.full((4, 4), 0.25, np.float16), ("lymphocyte",) * 4, ("a", "a", "b", "b"))
    keep_reference_cells(tmp_path / "parent", others)
    parent = ("--classifier", tmp_path / "parent")
    table = proposed(wbc, out, tmp_path / "ours", "--per-kind", 15, *parent)
    fill_in(table)
    mine = tmp_path / "mine.csv"
    pd.read_csv(table).drop(columns="number").to_csv(mine, index=False)
    result = wbc("adapt", out, "--names", mine, "--out", tmp_path / "ours", *parent)
    assert result.exit_code == 0, result.output
    assert "nothing tells by what the others were chosen" in result.stderr.replace("\n", " ")
    cells = read_reference_cells(registry.resolve(str(tmp_path / "ours"), "classifier")[0])
    assert cells is not None
    assert cells.to_bytes() == others.to_bytes()
    assert read_reference_cells(ref) is None


def test_a_table_with_many_empty_lines_does_not_tell_either(wbc: Wbc, out: Path, tmp_path: Path) -> None:
    """Somebody may have written down the wrong ones alone."""
    table = proposed(wbc, out, tmp_path / "ours", "--per-kind", 15)
    n = len(pd.read_csv(table))
    for filled, tells in ((int(0.7 * n), False), (int(0.9 * n), True)):
        fill_in(table, most=filled)
        facts = json.loads(wbc("adapt", out, "--names", table, "--out", tmp_path / "ours", "--json").stdout)
        assert facts["tells_misnaming"] == tells


def test_cells_are_seen_as_the_count_saw_them(out: Path, models: Mapping[str, Path]) -> None:
    ref, card = registry.resolve(str(models["classifier"]), "classifier")
    model, rows = registry.load(ref, "cpu"), slide_rows(UPath(out))
    cells = white_cells(read_cells(UPath(out), list(rows))).iloc[::-1].reset_index(drop=True)
    cut = cut_cells(UPath(out), cells, rows, card)
    assert cut.rows.tolist() == list(range(len(cells)))
    with torch.inference_mode():
        chances = last_layer(model)(torch.from_numpy(features(cut.crops, model))).softmax(2).mean(1).numpy()
    scored = cells["cell_type"] != "unidentified"
    assert scored.any()
    own: NDArray[np.float32] = chances[np.arange(len(cells)), chances.argmax(1)]
    np.testing.assert_allclose(own[scored], cells["type_score"][scored], atol=2e-3)


def test_names_that_gain_nothing_keep_the_last_layer(
    wbc: Wbc, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """A classifier that is sure of what it says, and names that say the same: nothing can be gained."""
    sure, model = tmp_path / "sure", tmp_path / "ours"
    ref, card = registry.resolve(str(models["classifier"]), "classifier")
    loaded = registry.load(ref, "cpu")
    layer = last_layer(loaded)
    registry.save(sure, with_last_layer(loaded, layer.weight.numpy() * 1e4, layer.bias.numpy() * 1e4), card)
    cells = white_cells(read_cells(UPath(out), ["monday"]))
    cut = cut_cells(UPath(out), cells, slide_rows(UPath(out)), card)
    with torch.inference_mode():
        answers = layer(torch.from_numpy(features(cut.crops, loaded)) * 1e4).softmax(2).mean(1).argmax(1)
    cells.assign(cell_type=[CLASSES[i] for i in answers]).to_parquet(tmp_path / "names.parquet")
    options = ("adapt", out, "--classifier", sure, "--names", tmp_path / "names.parquet", "--out", model)
    result = wbc(*options, "--json")
    assert result.exit_code == 0, result.output
    all_cells = json.loads(result.stdout)["right"][-1]
    assert (all_cells["cell_type"], all_cells["cells"], all_cells["before"]) == ("all", 60, 1.0)
    assert all_cells["after"] <= 1.0
    taught = registry.read_card(str(model))
    assert taught.taught is not None
    assert taught.taught.last_layer == "kept"
    assert taught.digest == registry.read_card(str(sure)).digest
    assert f"{model} names cells as {sure} does" in " ".join(wbc(*options).stdout.split())


REPLAY = """
classes = ["lymphocyte", "segmented_neutrophil", "band_neutrophil", "eosinophil"]
builder = "crop_classifier"
taxonomy = "blood"
[model]
backbone = "test_efficientnet"
[loop]
steps = 1
batch = 1
data_workers = 0
slow = []
[jitter]
plain = 1.0
[[data]]
set = "Elsewhere"
format = "pictures"
images = "cells"
kinds = "cells.csv"
um_per_px = 0.2
"""


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The options to replay cells of another stain, in steps that take no time."""
    rng, lines = np.random.default_rng(0), ["image,label"]
    (tmp_path / "old" / "cells").mkdir(parents=True)
    for kind, colour in COLOURS.items():
        for i in range(12):
            pixels = np.clip(np.array(colour)[::-1] + rng.integers(-30, 30, (130, 130, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "old" / "cells" / f"{kind}-{i}.png")
            lines.append(f"{kind}-{i},{kind}")
    (tmp_path / "old" / "cells.csv").write_text("\n".join(lines))
    (tmp_path / "replay.toml").write_text(REPLAY)
    for name, value in {"STEPS": 40, "BATCH": 16, "RATE": 5e-3, "WARM_UP": 2, "AVERAGE": 0.8}.items():
        monkeypatch.setattr(body, name, value)
    monkeypatch.setattr(teaching, "FEWEST_CELLS", 60)
    return "--replay", tmp_path / "replay.toml", "--data", tmp_path / "old"


def every_name(out: Path, names: Path) -> Path:
    """All cells of a count, as a person names them."""
    cells = white_cells(read_cells(UPath(out), ["monday", "tuesday"]))
    cells.assign(cell_type=[true_kind(cell) for cell in cells.to_dict("records")]).to_parquet(names)
    return names


def test_with_many_cells_the_body_learns_on_where_no_last_layer_would_do(
    wbc: Wbc,
    out: Path,
    models: Mapping[str, Path],
    replay: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "as_taught", lambda model, *_: model)
    names, model = every_name(out, tmp_path / "names.parquet"), tmp_path / "ours"
    result = wbc("adapt", out, "--names", names, "--out", model, *replay, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["body"]
    assert (told["cells"], told["old"]["cells"], told["sets"], told["taken"]) == (21, 4, ["Elsewhere"], True)
    assert told["right"]["before"] == told["right"]["layer"] < 0.8 < told["right"]["body"]
    taught, parent = registry.read_card(str(model)).taught, registry.read_card(str(models["classifier"]))
    assert taught is not None
    assert (taught.cells, taught.last_layer, taught.replayed) == (105, "fitted", ("Elsewhere",))
    assert registry.read_card(str(model)).parents[0].digest == parent.digest


def test_the_body_stays_where_a_last_layer_does_as_well(
    wbc: Wbc, out: Path, replay: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, model = every_name(out, tmp_path / "names.parquet"), tmp_path / "ours"
    options = ("adapt", out, "--names", names, "--out", model)
    monkeypatch.setattr(body, "STEPS", 2)
    result = wbc(*options, *replay)
    assert result.exit_code == 0, result.output
    assert "the body is left as it was" in result.stdout
    taught = registry.read_card(str(model)).taught
    assert taught is not None
    assert (taught.last_layer, taught.replayed) == ("fitted", ())
    monkeypatch.setattr(teaching, "FEWEST_CELLS", 106)
    assert "105 cells have names, the body learns from 200 on" in wbc(*options, *replay).stdout
    assert "give both" in refused(wbc(*options, *replay[:2]))


def test_what_is_replayed_must_be_what_the_classifier_knows(
    wbc: Wbc, out: Path, replay: tuple[object, ...], tmp_path: Path
) -> None:
    config = tmp_path / "replay.toml"
    config.write_text(REPLAY.replace(', "eosinophil"]', "]"))
    names = every_name(out, tmp_path / "names.parquet")
    told = refused(wbc("adapt", out, "--names", names, "--out", tmp_path / "ours", *replay))
    assert f"{config}: classes or builder are not those of" in told
    assert not (tmp_path / "ours" / "card.json").exists()


def test_names_in_a_table_are_not_written_over(wbc: Wbc, out: Path, tmp_path: Path) -> None:
    table = proposed(wbc, out, tmp_path / "ours", "--per-kind", 2)
    proposed(wbc, out, tmp_path / "ours", "--per-kind", 3)
    fill_in(table, most=1)
    assert "has names in it" in refused(wbc("adapt", out, "--out", tmp_path / "ours"))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("cell_type", "not_a_cell", "line 3: 'not_a_cell' is no cell type of the taxonomy blood"),
        ("cell_type", "basophil", "line 3: the classifier has no class for 'basophil'"),
        ("cell_type", "unidentified", "line 3: the classifier has no class for 'unidentified'"),
        ("slide_id", "sunday", "line 3: the count has no cell"),
        ("field", "f9.png", "line 3: the count has no cell"),
        ("x0", "7000", "where the file says"),
        ("x0", "left", "line 3: x0 is 'left', no number"),
        ("cell_id", "one", "line 3: cell_id is 'one', no number"),
    ],
)
def test_a_wrong_line_is_named(wbc: Wbc, out: Path, tmp_path: Path, column: str, value: str, expected: str) -> None:
    table = proposed(wbc, out, tmp_path / "ours")
    fill_in(table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    lines[2][lines[0].index(column)] = value
    table.write_text("\n".join(";".join(line) for line in lines))  # as a spreadsheet of another country saves it
    told = refused(wbc("adapt", out, "--names", table, "--out", tmp_path / "ours"))
    assert expected in told
    assert str(table) in told
    assert not (tmp_path / "ours" / "card.json").exists()


def test_a_cell_with_two_names_and_a_file_without_columns_are_refused(wbc: Wbc, out: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("slide_id,field,cell_id,cell_type\nmonday,f0.png,1,lymphocyte\nmonday,f0.png,1,eosinophil\n")
    told = refused(wbc("adapt", out, "--names", names, "--out", tmp_path / "ours"))
    assert f"{names}: line 3: cell 1 is lymphocyte in {names}: line 2" in told
    names.write_text("slide_id,field,cell_id\nmonday,f0.png,1\n")
    assert "has no column cell_type" in refused(wbc("adapt", out, "--names", names, "--out", tmp_path / "ours"))
    names.write_text("slide_id,field,cell_id,cell_type\nmonday,f0.png,1,lymphocyte\n")
    assert "1 cells have names, 10 at least" in refused(wbc("adapt", out, "--names", names, "--out", tmp_path / "ours"))


def test_fields_that_are_gone_or_changed_are_named_and_passed_over(
    wbc: Wbc, slides: Path, out: Path, tmp_path: Path
) -> None:
    (slides / "monday" / "f0.png").unlink()
    Image.new("RGB", (320, 200), "pink").save(slides / "tuesday" / "f1.png")
    result = wbc("adapt", out, "--out", tmp_path / "ours")
    assert "monday: f0.png" in result.stderr
    assert "tuesday: f1.png: has changed since it was counted" in result.stderr
    rows = pd.read_csv(tmp_path / "ours" / "cells.csv")
    assert ("monday", "f0.png") not in set(zip(rows["slide_id"], rows["field"], strict=True))
    assert ("tuesday", "f1.png") not in set(zip(rows["slide_id"], rows["field"], strict=True))


def test_a_taught_model_is_taught_again_from_what_it_was_made_of(
    wbc: Wbc, slides: Path, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Cells that taught a model may not be held out from it: the gain would be told wrong."""
    table = proposed(wbc, out, tmp_path / "first")
    fill_in(table)
    assert wbc("adapt", out, "--names", table, "--out", tmp_path / "first").exit_code == 0
    count(slides, out, models, tmp_path / "first")
    assert wbc("adapt", out, "--names", table, "--out", tmp_path / "second").exit_code == 0
    first, second = (registry.read_card(str(tmp_path / name)) for name in ("first", "second"))
    assert second.parents == first.parents
    assert second.sha256 == first.sha256


def test_a_model_that_nobody_taught_is_not_written_over(
    wbc: Wbc, out: Path, models: Mapping[str, Path], tmp_path: Path
) -> None:
    table = proposed(wbc, out, tmp_path / "ours")
    fill_in(table)
    assert "was not taught" in refused(wbc("adapt", out, "--names", table, "--out", models["classifier"]))


def test_the_scale_of_each_field_is_the_one_that_the_count_wrote_down(out: Path, models: Mapping[str, Path]) -> None:
    rows, card = slide_rows(UPath(out)), registry.read_card(str(models["classifier"]))
    cells = white_cells(read_cells(UPath(out), ["monday"]))
    by_slide = cut_cells(UPath(out), cells, rows, card)
    fields = read_table(UPath(out), "fields", "monday").to_pandas()
    fields["um_per_px"] = [0.1, 0.2, 0.2, None]  # the detector's own scale is 0.2, too
    fields.to_parquet(out / "fields" / "monday.parquet")
    by_field = cut_cells(UPath(out), cells, rows, card)
    same = (by_field.crops == by_slide.crops).all((1, 2, 3))
    assert set(cells["field"][same]) == {"f1.png", "f2.png", "f3.png"}
    assert set(cells["field"][~same]) == {"f0.png"}


def test_a_count_of_an_older_version_has_one_scale_or_is_passed_over(out: Path, models: Mapping[str, Path]) -> None:
    rows, card = slide_rows(UPath(out)), registry.read_card(str(models["classifier"]))
    cells = white_cells(read_cells(UPath(out), ["monday"]))
    now = cut_cells(UPath(out), cells, rows, card)
    older = replace(rows["monday"], fields_digest=None, detections_digest=None)
    then = cut_cells(UPath(out), cells, rows | {"monday": older}, card)
    assert not then.passed_over
    np.testing.assert_array_equal(then.crops, now.crops)
    mixed = cut_cells(UPath(out), cells, rows | {"monday": replace(older, flags=("mixed_scale",))}, card)
    assert len(mixed.crops) == 0
    assert "its scale is not written down" in mixed.passed_over[0]
    (out / ".wbc" / "monday.json").unlink()
    unknown = cut_cells(UPath(out), cells, rows | {"monday": older}, card)
    assert "nothing tells whether it is still the picture" in unknown.passed_over[0]


def test_without_a_count_or_a_taxonomy_that_is_known_it_is_refused(wbc: Wbc, tmp_path: Path, out: Path) -> None:
    assert "no slide was counted here" in refused(wbc("adapt", tmp_path, "--out", tmp_path / "ours"))
    assert "no such file" in refused(wbc("adapt", out, "--out", tmp_path / "ours", "--taxonomy", "mine.toml"))
