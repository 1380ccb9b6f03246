"""Single cells of data sets: from tables, from pictures of one cell, from boxes of fields."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from labelled import Box, clean
from painted import paint
from PIL import Image

from wbc.datasets.crops import (
    PATCH_PX,
    PATCH_UM,
    Crops,
    TableForm,
    cut_crops,
    read_cell_boxes,
    read_cell_pictures,
    read_crop_table,
)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (100, 80), colour).save(sink, "JPEG")
    return sink.getvalue()


def test_crops_of_a_split_come_from_a_table(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9)]
    rows = zip(["train", "train", "test", "train"], ["a", "b", "a", "platelet"], map(jpeg, colours), strict=True)
    pd.DataFrame(rows, columns=["split", "kind", "jpeg"]).to_parquet(tmp_path / "crops.parquet")
    crops = read_crop_table(tmp_path / "crops.parquet", "train", TableForm(0.1, leave_out=("platelet",)))
    assert crops.labels == ("a", "b")
    np.testing.assert_allclose(crops.pixels.mean((1, 2)), colours[:2], atol=3)
    with pytest.raises(ValueError, match=r"crops\.parquet: no crop of split 'val'"):
        read_crop_table(tmp_path / "crops.parquet", "val", TableForm(0.1))
    with pytest.raises(ValueError, match=r"no column 'label'; the columns are split, kind, jpeg"):
        read_crop_table(tmp_path / "crops.parquet", "train", TableForm(0.1, "label"))


def test_only_a_lone_white_cell_of_a_sure_kind_is_cut(tmp_path: Path) -> None:
    pictures = []
    for stem, labels in (("one", ("rbc", "wbc")), ("two", ("wbc", "wbc")), ("unsure", ("wbc",))):
        Image.fromarray(paint(100, 200, [(150, 40, 20)])).save(tmp_path / f"{stem}.png")
        boxes: list[Box] = [(130, 20, 171, 61), (0, 0, 20, 20)]
        pictures.append(clean(tmp_path / f"{stem}.png", boxes[::-1][-len(labels) :], list(labels)))
    um_per_px = PATCH_UM / PATCH_PX
    crops = cut_crops(pictures, {"one": "monocyte", "two": "basophil"}, um_per_px)
    assert crops.labels == ("monocyte",)
    dark = np.argwhere(crops.pixels[0, :, :, 0] < 200)
    np.testing.assert_allclose(dark.mean(0), PATCH_PX / 2 - 0.5, atol=1)
    np.testing.assert_allclose(np.ptp(dark, 0), 40, atol=1)
    assert cut_crops(pictures, {}, um_per_px).pixels.shape == (0, PATCH_PX, PATCH_PX, 3)


def test_cells_come_from_pictures_of_one_each_and_from_boxes_of_fields(tmp_path: Path) -> None:
    field = np.full((200, 300, 3), 240, np.uint8)
    field[40:60, 80:100], field[150:170, 220:240] = (200, 0, 0), (0, 0, 200)
    for name, pixels in (("f.png", field), ("1.png", field[30:70, 70:110]), ("2.png", field[140:180, 210:250])):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "cells.csv").write_text(
        "field,smear,kind,x0,y0,x1,y1\nf.png,A,monocyte,220,150,240,170\nf.png,A,basophil,80,40,100,60\n"
    )
    (tmp_path / "kinds.csv").write_text("image,label\n2,monocyte\n1,basophil\n")
    boxes = read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.5)
    pictures = read_cell_pictures(tmp_path, tmp_path / "kinds.csv", 0.5)
    assert boxes.labels == pictures.labels == ("monocyte", "basophil")
    for crops in (boxes, pictures):
        middles = crops.pixels[:, PATCH_PX // 2, PATCH_PX // 2].astype(int)
        assert (np.abs(middles - [(0, 0, 200), (200, 0, 0)]) < 12).all()
    np.testing.assert_allclose(boxes.pixels[:, 30:-30, 30:-30], pictures.pixels[:, 30:-30, 30:-30], atol=4)


def test_cells_without_a_picture_or_with_a_broken_box_are_named(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("field,kind,x0,y0,x1,y1\nf.png,monocyte,1,1,2,2\nf.png,monocyte,1,1,,2\n")
    with pytest.raises(ValueError, match=r"cells\.csv: line 3: the box is not four finite numbers"):
        read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.1)
    (tmp_path / "cells.csv").write_text("field,kind,x0,y0,x1,y1\nf.png,monocyte,1,1,2,2\n")
    with pytest.raises(ValueError, match=r"cells\.csv: picture .*f\.png is missing"):
        read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.1)
    (tmp_path / "kinds.csv").write_text("image,label\n7,monocyte\n")
    with pytest.raises(ValueError, match=r"kinds\.csv: there is no picture 7 in"):
        read_cell_pictures(tmp_path, tmp_path / "kinds.csv", 0.1)


def test_crops_of_another_number_than_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        Crops(np.zeros((1, PATCH_PX, PATCH_PX, 3), np.uint8), ("a", "b"))
