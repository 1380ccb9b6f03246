"""Rendered smears: the truth says where each cell is, and the same seed draws the same slide."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label as label_regions

from wbc.datasets.coco import read_coco
from wbc.synth.kinds import RECIPES
from wbc.synth.smear import SmearSettings, draw_stain, render_field, render_slides

SMALL = SmearSettings(
    height_px=240, width_px=320, um_per_px=0.2, white_cells_per_field=(2, 3), platelets_per_field=(1, 3)
)
ALONE = SmearSettings(
    height_px=280,
    width_px=280,
    um_per_px=0.15,
    white_cells_per_field=(1, 1),
    platelets_per_field=(0, 0),
    red_cells_per_mm2=(0.0, 0.0),
)
DIAMETER_UM = {
    "segmented_neutrophil": (11.5, 17.0),
    "band_neutrophil": (11.5, 17.5),
    "metamyelocyte": (11.5, 17.5),
    "myelocyte": (12.0, 18.0),
    "promyelocyte": (14.0, 20.5),
    "eosinophil": (12.0, 18.0),
    "basophil": (11.0, 16.5),
    "lymphocyte": (8.5, 14.0),
    "monocyte": (13.5, 23.0),
    "erythroblast": (8.0, 13.5),
}


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole_cell(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and box of a cell of a kind that lies whole in its field."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        pixels, boxes, labels = render_field(replace(ALONE, proportions=((kind, 1.0),)), rng)
        if labels == (kind,) and boxes.min() > 0 and boxes.max() < 280:
            return pixels, boxes[0]
    raise AssertionError(f"no whole {kind} in 100 fields")


def test_same_seed_same_bytes_and_no_file_besides(tmp_path: Path) -> None:
    truth = render_slides(tmp_path / "a", 2, 2, 7, SMALL)
    render_slides(tmp_path / "b", 2, 2, 7, SMALL)
    assert truth == tmp_path / "a" / "truth_coco.json"
    assert sorted(bytes_below(tmp_path / "a")) == [
        *(f"slide-{s:02d}/field-{f:02d}.jpg" for s in (1, 2) for f in (1, 2)),
        "truth_coco.json",
    ]
    assert bytes_below(tmp_path / "a") == bytes_below(tmp_path / "b")


def test_another_seed_draws_another_slide(tmp_path: Path) -> None:
    render_slides(tmp_path / "a", 1, 2, 1, SMALL)
    render_slides(tmp_path / "b", 1, 2, 2, SMALL)
    fields = [bytes_below(tmp_path / s)[f"slide-01/field-0{f}.jpg"] for s in "ab" for f in (1, 2)]
    assert len(set(fields)) == 4


def test_asking_for_more_leaves_earlier_fields_as_they_are(tmp_path: Path) -> None:
    render_slides(tmp_path / "few", 1, 1, 3, SMALL)
    render_slides(tmp_path / "more", 2, 2, 3, SMALL)
    name = "slide-01/field-01.jpg"
    assert bytes_below(tmp_path / "few")[name] == bytes_below(tmp_path / "more")[name]
    first = json.loads((tmp_path / "few" / "truth_coco.json").read_text())
    more = json.loads((tmp_path / "more" / "truth_coco.json").read_text())
    of_first_field = [a for a in more["annotations"] if a["image_id"] == more["images"][0]["id"]]
    assert of_first_field == first["annotations"]


def test_truth_agrees_with_the_files_and_reads_back(tmp_path: Path) -> None:
    truth = render_slides(tmp_path, 2, 1, 11, SMALL)
    pictures = read_coco(tmp_path, truth)
    assert [str(p.path.relative_to(tmp_path)) for p in pictures] == ["slide-01/field-01.jpg", "slide-02/field-01.jpg"]
    for number, picture in enumerate(pictures, 1):
        with Image.open(picture.path) as jpeg:
            assert (jpeg.mode, jpeg.size) == ("RGB", (320, 240))
        rng = np.random.default_rng([11, number, 1])
        _, boxes, labels = render_field(SMALL, rng, draw_stain(np.random.default_rng([11, number])))
        assert picture.labels == labels
        np.testing.assert_array_equal(picture.boxes, boxes)


def test_image_sizes_and_categories_of_the_truth(tmp_path: Path) -> None:
    truth = json.loads(render_slides(tmp_path, 1, 1, 0, SMALL).read_text())
    assert [(i["width"], i["height"]) for i in truth["images"]] == [(320, 240)]
    assert {c["name"] for c in truth["categories"]} == {"rbc", "platelet", *RECIPES}


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    um_per_px=st.floats(0.08, 0.5),
)
def test_boxes_lie_inside_the_field_with_known_labels(seed: int, height: int, width: int, um_per_px: float) -> None:
    smear = replace(SMALL, height_px=height, width_px=width, um_per_px=um_per_px)
    pixels, boxes, labels = render_field(smear, np.random.default_rng(seed))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(labels), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert set(labels) <= {"rbc", "platelet", *RECIPES}


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_each_kind_has_its_size_and_a_dark_nucleus(kind: str) -> None:
    low, high = DIAMETER_UM[kind]
    for seed in range(2):
        pixels, (x0, y0, x1, y1) = whole_cell(kind, seed)
        sides_um = np.array([x1 - x0, y1 - y0]) * ALONE.um_per_px
        assert low <= np.sqrt(sides_um.prod()) <= high
        inside = pixels[int(y0) : int(y1), int(x0) : int(x1)].astype(int)
        nucleus = (inside[..., 0] < 120) & (inside[..., 1] < 90)
        assert 0.1 < nucleus.mean() < 0.9


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_box_is_the_extent_of_what_differs_from_the_ground(kind: str) -> None:
    pixels, (x0, y0, x1, y1) = whole_cell(kind, 5)
    green = pixels[..., 1].astype(int)
    stained = green < np.median(green) - 20
    regions, _ = label_regions(stained)
    largest = regions == np.bincount(regions[regions > 0]).argmax()
    for start, stop, axis in ((x0, x1, 0), (y0, y1, 1)):
        reached = np.flatnonzero(largest.any(axis))
        # A frill's outermost pixels may be too pale to tell from the ground.
        assert abs(reached[0] - start) <= 3
        assert abs(reached[-1] + 1 - stop) <= 3


def test_lobes_and_round_nuclei_fill_their_cells_differently() -> None:
    def share(kind: str) -> float:
        shares = []
        for seed in range(4):
            pixels, (x0, y0, x1, y1) = whole_cell(kind, seed)
            red = pixels[int(y0) : int(y1), int(x0) : int(x1), 0]
            shares.append(float((red < 120).mean()) / (np.pi / 4))
        return float(np.median(shares))

    assert share("segmented_neutrophil") < 0.5 < 0.65 < share("lymphocyte")


def test_eosinophil_is_redder_than_a_neutrophil() -> None:
    def redness(kind: str) -> float:
        pixels, (x0, y0, x1, y1) = whole_cell(kind, 1)
        cell = pixels[int(y0) : int(y1), int(x0) : int(x1)].astype(float)
        cytoplasm = cell[(cell[..., 0] > 140) & (cell[..., 1] < 200)]
        return float((cytoplasm[:, 0] / cytoplasm[:, 1]).mean())

    assert redness("eosinophil") > redness("segmented_neutrophil") + 0.15


def test_a_default_field_holds_what_its_settings_say() -> None:
    smear = SmearSettings(height_px=960, width_px=1280, um_per_px=0.2)
    _, boxes, labels = render_field(smear, np.random.default_rng(0))
    count = {name: labels.count(name) for name in ("rbc", "platelet")}
    assert 250 <= count["rbc"] <= 750
    assert 5 <= count["platelet"] <= 30
    assert 5 <= len(labels) - sum(count.values()) <= 14
    red = boxes[[label == "rbc" for label in labels]]
    inner = red[(red[:, 0] > 0) & (red[:, 1] > 0) & (red[:, 2] < 1280) & (red[:, 3] < 960)]
    across_um = np.median(np.sqrt((inner[:, 2] - inner[:, 0]) * (inner[:, 3] - inner[:, 1]))) * 0.2
    assert across_um == pytest.approx(7.2, rel=0.06)


def test_white_cells_do_not_overlap_one_another() -> None:
    crowded = replace(SMALL, height_px=400, width_px=400, white_cells_per_field=(12, 12))
    for seed in range(3):
        _, boxes, labels = render_field(crowded, np.random.default_rng(seed))
        white = [b for b, label in zip(boxes, labels, strict=True) if label in RECIPES]
        assert len(white) >= 4
        for i, a in enumerate(white):
            for b in white[:i]:
                shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
                # The corners of two boxes may meet where the round cells in them do not.
                assert shared < 0.12 * min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())


def test_an_empty_smear_is_light_alone() -> None:
    bare = replace(ALONE, white_cells_per_field=(0, 0))
    pixels, boxes, labels = render_field(bare, np.random.default_rng(0))
    assert boxes.shape == (0, 4)
    assert labels == ()
    assert np.quantile(pixels[..., 1], 0.01) > 200


def test_stain_differs_from_slide_to_slide() -> None:
    stains = [draw_stain(np.random.default_rng([0, slide])) for slide in range(1, 6)]
    assert len({stain.dye for stain in stains}) == 5
    assert all(200 <= level <= 254 for stain in stains for level in (*stain.light[:2], stain.light[0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"height_px": 0},
        {"um_per_px": 0.0},
        {"um_per_px": float("nan")},
        {"white_cells_per_field": (3, 2)},
        {"platelets_per_field": (-1, 2)},
        {"proportions": ()},
        {"proportions": (("lymphocyte", 0.0),)},
        {"proportions": (("hairy_cell", 1.0),)},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no field|no range|no proportions|none of"):
        replace(SMALL, **wrong)


@pytest.mark.parametrize(("slides", "fields"), [(0, 1), (1, 0)])
def test_nothing_to_render_is_refused(tmp_path: Path, slides: int, fields: int) -> None:
    with pytest.raises(ValueError, match="nothing to render"):
        render_slides(tmp_path / "out", slides, fields, 0, SMALL)
    assert not (tmp_path / "out").exists()
