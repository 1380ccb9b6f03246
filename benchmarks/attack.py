"""Seeded damage to fields, slide folders and OUT: every run ends with the true count, a named failure or a flag.

A trial counts a slide of two fields, of which one was damaged, into an OUT of its own; or it damages a file of an OUT
that holds a finished count, and counts again. What the tables say then is held against the count of the same slide
undisturbed: true (the same cells of every field, or of every one that is not named as failed and of which nothing is
counted), flagged, silent, or broken (an error that no table tells).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from benchmarks.common import Claim, Report, parser, show, stub_detector
from benchmarks.damages import ATTACKS, TARGETS, Rng
from wbc.counting.slide import Job, count_slide, is_counted
from wbc.models import registry
from wbc.storage.images import read_field
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_field
from wbc.taxonomy import load_taxonomy

Counts = dict[str, Counter[str]]
Verdict = Literal["true", "named", "flagged", "silent", "broken"]

HEIGHT, WIDTH, UM_PER_PX = 480, 640, 0.2
DARK_LEVEL = 0.65  # red and white cells of real and of rendered fields are darker
FLAGS_THAT_TELL = {"fields_failed", "duplicate_fields", "mixed_scale", "slide_failed"}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (".jpg", {"format": "JPEG", "quality": 92}),
    "progressive jpeg": (".jpg", {"format": "JPEG", "quality": 92, "progressive": True}),
    "grey jpeg": (".jpg", {"format": "JPEG", "quality": 92}),
    "png": (".png", {"format": "PNG", "compress_level": 1}),
    "bmp": (".bmp", {"format": "BMP"}),
    "tiff": (".tif", {"format": "TIFF"}),
    "lzw tiff": (".tif", {"format": "TIFF", "compression": "tiff_lzw"}),
    "deflate tiff": (".tif", {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
    "jpeg tiff": (".tif", {"format": "TIFF", "compression": "jpeg", "quality": 92}),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What one trial attacked, how, and what came of it."""

    number: int
    target: str
    attack: str
    verdict: Verdict
    reason: str


def base_fields(data: Path | None, n: int, seed: int) -> list[NDArray[np.uint8]]:
    """`n` fields of 640×480 px: pieces of the real fields in `data`, else rendered ones."""
    rng = np.random.default_rng(seed)
    if data is None:
        settings = SmearSettings(height_px=HEIGHT, width_px=WIDTH, um_per_px=UM_PER_PX)
        return [render_field(settings, rng)[0] for _ in range(n)]
    slides = [slide for slide in discover(UPath(data)) if slide.field_paths]
    pieces = []
    for _ in range(n):
        slide = slides[int(rng.integers(len(slides)))]
        pixels = read_field(slide.field_paths[int(rng.integers(len(slide.field_paths)))])
        y, x = (int(rng.integers(0, max(1, size + 1))) for size in (pixels.shape[0] - HEIGHT, pixels.shape[1] - WIDTH))
        pieces.append(np.ascontiguousarray(pixels[y : y + HEIGHT, x : x + WIDTH]))
    return pieces


def write_slide(folder: Path, fields: list[NDArray[np.uint8]], rng: Rng) -> tuple[Path, str]:
    """A slide of two of these fields, each in some format, and the file and format of the first."""
    folder.mkdir(parents=True)
    written = []
    for i in range(2):
        name = str(rng.choice(list(FORMATS)))
        suffix, options = FORMATS[name]
        picture = Image.fromarray(fields[int(rng.integers(len(fields)))])
        sink = BytesIO()
        (picture.convert("L") if name.startswith("grey") else picture).save(sink, **options)
        path = folder / f"field-{i}{suffix}"
        path.write_bytes(sink.getvalue())
        written.append((path, name))
    return written[0]


def count(slides: Path, job: Job) -> None:
    """What a run does with each slide below `slides`, on one thread."""
    with ThreadPoolExecutor(1) as executor:
        for slide in discover(UPath(slides)):
            scaled = replace(slide, um_per_px=UM_PER_PX)
            if not is_counted(scaled, job):
                count_slide(scaled, job, executor)


def counts(out: UPath) -> tuple[Counts, set[str], set[str], str]:
    """Of all slides in OUT: cells of each field by type, fields that failed, flags, and the failures' reasons."""
    cells, slides = (pd.concat(pd.read_parquet(f.path) for f in (out / name).iterdir()) for name in ("cells", "slides"))
    of_fields = {stem(str(field)): Counter(rows["cell_type"]) for field, rows in cells.groupby("field", observed=True)}
    failures = [failure for row in slides["failed_fields"] for failure in row]
    flags = {flag for row in slides["flags"] for flag in row}
    return of_fields, {stem(f["field"]) for f in failures}, flags, "; ".join(f["reason"] for f in failures)


def stem(name: str) -> str:
    """A field's name without its suffix: attacks may give it another."""
    return name.rpartition(".")[0] or name


def judge(truth: Counts, out: UPath) -> tuple[Verdict, str]:
    """What became of a slide whose cells are `truth`, by the tables in OUT."""
    counted, failed, flags, reason = counts(out)
    expected = {field: cells for field, cells in truth.items() if field not in failed}
    if counted == expected:
        return ("named", reason) if failed else ("true", "")
    if flags & (FLAGS_THAT_TELL - {"fields_failed"}):
        return "flagged", ", ".join(sorted(flags))
    wrong = {field for field in counted.keys() | expected.keys() if counted.get(field) != expected.get(field)}
    return "silent", "; ".join(f"{f}: {_n(counted.get(f))} cells, truly {_n(expected.get(f))}" for f in sorted(wrong))


def _n(cells: Counter[str] | None) -> int:
    return cells.total() if cells else 0


def run_trial(number: int, seed: int, fields: list[NDArray[np.uint8]], job: Job, scratch: Path) -> Trial:
    """One trial, the same for the same number and seed."""
    rng = np.random.default_rng([seed, number])
    slides, out = scratch / "slides", UPath(scratch / "out")
    field, written = write_slide(slides / "s1", fields, rng)
    count(slides, replace(job, out=out))
    truth = counts(out)[0]
    target = TARGETS[number % 3]
    attack: Any = ATTACKS[target][int(rng.integers(len(ATTACKS[target])))]
    if target == "OUT":
        files = sorted(path for path in Path(out.path).rglob("*") if path.is_file())
        damaged = files[int(rng.integers(len(files)))]
        written = str(damaged.relative_to(out.path).parent)
        replace_content(damaged, attack(bytearray(damaged.read_bytes()), rng))
    else:
        out = UPath(scratch / "again")
        if target == "field":
            replace_content(field, attack(bytearray(field.read_bytes()), rng))
        else:
            attack(field, rng)
    try:
        count(slides, replace(job, out=out))
        verdict, reason = judge(truth, out)
    except Exception as error:  # whatever it is, nobody is told of it in the tables
        verdict, reason = "broken", f"{type(error).__name__}: {error}"
    return Trial(number, f"{target}: {written}", attack.__name__.replace("_", " "), verdict, reason)


def replace_content(path: Path, content: bytes | None) -> None:
    """Write a file anew, or remove it."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@dataclass(frozen=True, slots=True)
class Attack:
    """How many trials (or which one alone), from what seed, on what data, with what detector: a stub without one."""

    trials: int = 2000
    seed: int = 1
    data: Path | None = None
    only: int | None = None
    detector: str | None = None


def trials(attack: Attack) -> Iterator[Trial]:
    """The trials, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        fields = base_fields(attack.data, 12, attack.seed)
        stub = stub_detector(Path(folder) / "detector", DARK_LEVEL)
        detector = stub if attack.detector is None else registry.resolve(attack.detector, "detector")[0]
        job = Job(UPath(folder), detector, None, load_taxonomy("blood"), device="cpu")
        for number in range(attack.trials) if attack.only is None else [attack.only]:
            scratch = Path(folder) / f"trial-{number}"
            yield run_trial(number, attack.seed, fields, job, scratch)
            shutil.rmtree(scratch)


def measure(attack: Attack) -> Report:
    """How the trials ended, by what was attacked and how, and each that ended in silence or with an error."""
    done = list(trials(attack))
    verdicts: tuple[Verdict, ...] = ("true", "named", "flagged", "silent", "broken")
    ends = Counter((t.target, t.attack, t.verdict) for t in done)
    rows = [
        {"target": target, "attack": attack, **{verdict: ends[target, attack, verdict] for verdict in verdicts}}
        for target, attack in sorted({(t.target, t.attack) for t in done})
    ]
    bad = [
        {"trial": t.number, "target": t.target, "attack": t.attack, "end": t.verdict, "what": t.reason[:150]}
        for t in done
        if t.verdict in ("silent", "broken")
    ]
    totals = Counter(t.verdict for t in done)
    claims = [
        Claim("trials", len(done)),
        *(Claim(f"ended {verdict}", totals[verdict]) for verdict in ("true", "named", "flagged")),
        Claim("differ in silence", totals["silent"], at_most=0),
        Claim("end with an error", totals["broken"], at_most=0),
    ]
    return Report("Attack", claims, {"Ends": rows, "In silence, or with an error": bad})


def main() -> None:
    """Attack as the command line says, and print how the trials ended."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--trials", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--data", type=Path, help="a folder of real slides; rendered fields without one")
    arguments.add_argument("--only", type=int, help="run the trial of this number alone")
    arguments.add_argument("--detector", help="a model in place of the stub, as bundled:detector")
    options = vars(arguments.parse_args())
    as_json = options.pop("json")
    show(measure(Attack(**options)), as_json=as_json)


if __name__ == "__main__":
    main()
