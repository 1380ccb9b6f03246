"""Seeded damage to fields, slide folders, trees of them and OUT: each run ends true, named, flagged, or is refused.

A trial counts a slide of two fields. Then one of its fields or its folder is damaged, and it is counted into another
OUT; or the tree of slides or a file of OUT is, and it is counted into the same OUT again. What a person gets to read
then, tables and words, is held against the count of the slide undisturbed: true (the same cells of every field, or of
every one that is not named as failed and of which nothing is counted), named, flagged, unseen (the damage is of a kind
that the file's format cannot show), silent, or broken (an error that no table tells, and that is no refusal).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from benchmarks.common import Claim, Report, parser, show, stub_detector
from benchmarks.count_run import run_count
from benchmarks.counted import Tables, read_tables
from benchmarks.damages import ATTACKS, MAY_PASS_UNSEEN
from benchmarks.small_slides import UM_PER_PX, base_fields, write_slide
from benchmarks.trees import ACTS, Tree
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import Change, recount_slides
from wbc.storage.layout import Layout

Cells = dict[tuple[str, str], Counter[str]]  # of a slide's field, by its id and its name without suffix: cells by type
Verdict = Literal["true", "named", "flagged", "unseen", "silent", "broken"]
VERDICTS: tuple[Verdict, ...] = ("true", "named", "flagged", "unseen", "silent", "broken")
TARGETS = ("field", "folder", "tree", "OUT")

DARK_LEVEL = 0.65  # red and white cells of real and of rendered fields are darker
FLAGS_THAT_TELL = {"duplicate_fields", "mixed_scale", "slide_failed"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What one trial attacked, how, and what came of it."""

    number: int
    target: str
    attack: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A slide `s1` of two fields, counted undisturbed: what counts it, its tables, and the field to be damaged."""

    parameters: CountParameters
    truth: Tables
    field: Path
    format: str

    @property
    def out(self) -> Path:
        """The OUT of the undisturbed count."""
        return Path(self.parameters.out)


def cells_of(tables: Tables) -> Cells:
    """The cells of each field that has any."""
    by_field = tables["cells"].groupby(["slide_id", "field"], observed=True)["cell_type"]
    return {(str(slide), stem(str(field))): Counter(types) for (slide, field), types in by_field}


def stem(name: str) -> str:
    """A field's name without its suffix: attacks may give it another."""
    return name.rpartition(".")[0] or name


def differences(counted: Cells, expected: Cells) -> str:
    """The fields whose cells are not those expected; "" where there is none."""
    wrong = [field for field in counted.keys() | expected.keys() if counted.get(field) != expected.get(field)]
    return "; ".join(f"{f[0]}/{f[1]}: {_n(counted.get(f))} cells, truly {_n(expected.get(f))}" for f in sorted(wrong))


def _n(cells: Counter[str] | None) -> int:
    return cells.total() if cells else 0


def judge(truth: Cells, found: Tables) -> tuple[Verdict, str]:
    """What became of slides whose cells are `truth`, by their tables; which folder a field lies in is left aside."""
    failures = [failure for row in found["slides"]["failed_fields"] for failure in row]
    failed = {stem(failure["field"]) for failure in failures}
    counted = {("", field): cells for (_, field), cells in cells_of(found).items()}
    expected = {("", field): cells for (_, field), cells in truth.items() if field not in failed}
    if counted == expected:
        return ("named", "; ".join(f["reason"] for f in failures)) if failed else ("true", "")
    flags = {flag for row in found["slides"]["flags"] for flag in row}
    if flags & FLAGS_THAT_TELL:
        return "flagged", ", ".join(sorted(flags))
    return "silent", differences(counted, expected)


def damage_field(scene: Scene, attack: Any, rng: np.random.Generator) -> tuple[Verdict, str]:
    """Damage to the bytes of a field, or to its folder; counted into another OUT."""
    if attack in ATTACKS["field"]:
        replace_content(scene.field, attack(bytearray(scene.field.read_bytes()), rng))
    else:
        attack(scene.field, rng)
    again = replace(scene.parameters, out=str(scene.out.with_name("again")))
    run_count(again)
    verdict, reason = judge(cells_of(scene.truth), read_tables(UPath(again.out)))
    if verdict == "silent" and scene.format in MAY_PASS_UNSEEN.get(attack.__name__, ()):
        verdict = "unseen"
    return verdict, reason


def change_tree(scene: Scene, act: Any, rng: np.random.Generator) -> tuple[Verdict, str]:
    """A change to the tree of slides; counted into the same OUT."""
    tree: Tree = act(Path(scene.parameters.slides), bool(rng.integers(2)))
    try:
        remarks = run_count(replace(scene.parameters, slides=str(tree.root))).remarks
        words = "\n".join([*remarks.warnings(), *remarks.notes()])
    except (ValueError, OSError) as error:  # the command's exit status 2, with this line
        words = str(error)
    truth = {field: cells for (_, field), cells in cells_of(scene.truth).items() if field not in tree.fields_gone}
    found = {key: cells for key, cells in cells_of(read_tables(UPath(scene.out))).items() if key[0] in tree.slide_ids}
    wrong = differences(found, {(own_id, field): cells for own_id in tree.slide_ids for field, cells in truth.items()})
    unsaid = [word for word in tree.words if word not in words]
    if wrong or unsaid:
        return "silent", wrong or f"not said: {unsaid} in {words!r}"
    return ("named", words) if tree.words else ("true", "")


def damage_out(scene: Scene, attack: Any, rng: np.random.Generator) -> tuple[Verdict, str]:
    """Damage to a file of OUT; recounted or not, then counted into it again. All tables must come out as they were."""
    files = sorted(path for path in scene.out.rglob("*") if path.is_file() and path.stat().st_size)
    damaged = files[int(rng.integers(len(files)))]
    replace_content(damaged, attack(bytearray(damaged.read_bytes()), rng))
    out, where = UPath(scene.out), str(damaged.relative_to(scene.out).parent)
    if rng.integers(2):
        outcomes = recount_slides(out, Layout(out).slide_ids(), Change())
        if any(outcome.status == "counted" for outcome in outcomes) and (wrong := changed(scene.truth, out)):
            return "silent", f"{where}: {wrong} differ after a recount"
    run_count(scene.parameters)
    wrong = changed(scene.truth, out)
    return ("silent", f"{where}: {wrong} differ") if wrong else ("true", where)


def changed(truth: Tables, out: UPath) -> str:
    """The names of the tables in OUT that differ from the true ones."""
    found = read_tables(out)
    return ", ".join(name for name, table in truth.items() if not table.equals(found[name]))


def replace_content(path: Path, content: bytes | None) -> None:
    """Write a file anew, or remove it."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)


MEANS: dict[str, Any] = {"field": damage_field, "folder": damage_field, "tree": change_tree, "OUT": damage_out}
CHOICES: dict[str, tuple[Any, ...]] = ATTACKS | {"tree": ACTS}


def set_scene(fields: list[NDArray[np.uint8]], detector: str, scratch: Path, rng: np.random.Generator) -> Scene:
    """A slide of two of `fields`, and its count."""
    field, written = write_slide(scratch / "slides" / "s1", fields, rng)
    slides, out = str(scratch / "slides"), str(scratch / "out")
    parameters = CountParameters(slides, out, detector, None, um_per_px=UM_PER_PX, device="cpu")
    run_count(parameters)
    return Scene(parameters, read_tables(UPath(out)), field, written)


@dataclass(frozen=True, slots=True)
class Attack:
    """How many trials (or which one alone), from what seed, on what data, with what detector: a stub without one."""

    trials: int = 2000
    seed: int = 1
    data: Path | None = None
    only: int | None = None
    detector: str | None = None
    targets: tuple[str, ...] = TARGETS


def run_trial(number: int, attack: Attack, fields: list[NDArray[np.uint8]], detector: str, scratch: Path) -> Trial:
    """One trial, the same for the same number, seed and targets."""
    rng = np.random.default_rng([attack.seed, number])
    scene = set_scene(fields, detector, scratch, rng)
    target = attack.targets[number % len(attack.targets)]
    chosen: Any = CHOICES[target][int(rng.integers(len(CHOICES[target])))]
    try:
        verdict, reason = MEANS[target](scene, chosen, rng)
    except Exception as error:  # whatever it is, nobody hears of it in the tables
        verdict, reason = "broken", f"{type(error).__name__}: {error}"
    what = f"{target}: {scene.format}" if target in ("field", "folder") else target
    return Trial(number, what, chosen.__name__.replace("_", " "), verdict, reason)


def trials(attack: Attack) -> Iterator[Trial]:
    """The trials, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        fields = base_fields(attack.data, 12, attack.seed)
        stub = stub_detector(Path(folder) / "detector", DARK_LEVEL)
        detector = attack.detector or stub.reference
        for number in range(attack.trials) if attack.only is None else [attack.only]:
            scratch = Path(folder) / f"trial-{number}"
            yield run_trial(number, attack, fields, detector, scratch)
            shutil.rmtree(scratch)


def measure(attack: Attack) -> Report:
    """How the trials ended, by what was attacked and how, and each that ended in silence or with an error."""
    done = list(trials(attack))
    ends = Counter((t.target, t.attack, t.verdict) for t in done)
    rows = [
        {"target": target, "attack": name, **{verdict: ends[target, name, verdict] for verdict in VERDICTS}}
        for target, name in sorted({(t.target, t.attack) for t in done})
    ]
    bad = [
        {"trial": t.number, "target": t.target, "attack": t.attack, "end": t.verdict, "what": t.reason[:150]}
        for t in done
        if t.verdict in ("unseen", "silent", "broken")
    ]
    totals = Counter(t.verdict for t in done)
    claims = [
        Claim("trials", len(done)),
        *(Claim(f"ended {verdict}", totals[verdict]) for verdict in ("true", "named", "flagged")),
        Claim("differ unseen, as the format cannot show", totals["unseen"]),
        Claim("differ in silence", totals["silent"], at_most=0),
        Claim("end with an error", totals["broken"], at_most=0),
    ]
    return Report("Attack", claims, {"Ends": rows, "Unseen, in silence, or with an error": bad})


def main() -> None:
    """Attack as the command line says, and print how the trials ended."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--trials", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--data", type=Path, help="a folder of real slides; rendered fields without one")
    arguments.add_argument("--only", type=int, help="run the trial of this number alone")
    arguments.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="what is attacked: all")
    arguments.add_argument("--detector", help="a model in place of the stub, as bundled:detector")
    options = vars(arguments.parse_args())
    as_json, targets = options.pop("json"), tuple(options.pop("targets"))
    show(measure(Attack(**options, targets=targets)), as_json=as_json)


if __name__ == "__main__":
    main()
