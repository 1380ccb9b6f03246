"""YOLO annotations (one text file a picture: class, centre and size as fractions) in."""

from pathlib import Path

from PIL import Image

from wbc.datasets.labels import LabelledPicture, clean


def read_yolo(
    images: Path, annotations: Path, classes: list[str], stems: list[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a YOLO folder; `classes` names its class numbers, `stems` keeps a split of the files.

    Raises ValueError, naming file and line, where a line is not five numbers or its class is unknown.
    """
    pictures = {p.stem: p for p in images.iterdir() if p.is_file()}
    chosen = sorted(stems) if stems is not None else sorted(p.stem for p in annotations.glob("*.txt"))
    read = []
    for stem in chosen:
        path = annotations / f"{stem}.txt"
        if stem not in pictures:
            raise ValueError(f"{path}: no picture {stem}.* in {images}")
        with Image.open(pictures[stem]) as picture:
            width, height = picture.size
        boxes, labels = [], []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                kind, x, y, w, h = line.split()
                labels.append(classes[int(kind)])
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}:{number}: not a YOLO box of {len(classes)} classes: {line!r}") from error
            cx, cy, bw, bh = float(x) * width, float(y) * height, float(w) * width, float(h) * height
            boxes.append((cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2))
        read.append(clean(pictures[stem], boxes, labels))
    return read
