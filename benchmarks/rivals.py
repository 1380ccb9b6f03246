"""Two runs on one OUT, started at random offsets: one writes, the other is refused with its name or counts afterwards.

A trial gives two processes the same slides and the same OUT, which is empty, or holds a count at another scale, whose
cells are others. The processes fork from one that has imported everything; `--commands` trials run the whole `wbc
count` instead. Then the tables in OUT must be those of a run that nobody disturbed, at least one run must have counted,
and one that was refused must have been told who writes there.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from benchmarks.common import Claim, Report, Row, parser, show, stub_detector
from benchmarks.count_run import run_count
from benchmarks.counted import Tables, read_tables
from benchmarks.small_slides import UM_PER_PX, base_fields, write_slide
from wbc.counting.parameters import CountParameters

N_SLIDES, DARK_LEVEL, OTHER_UM_PER_PX = 3, 0.65, 0.25
FORK = get_context("fork")


@dataclass(frozen=True, slots=True)
class Ending:
    """How one of two rivals ended: what became of its slides, or the words that it was refused with."""

    pid: int
    counted: int = 0
    unchanged: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: what OUT held, how long the second run waited, how both ended, and whether the tables are true."""

    begun_with: str
    offset_s: float
    endings: tuple[Ending, Ending]
    is_true: bool

    @property
    def kind(self) -> str:
        """What happened, in words."""
        refused = [ending for ending in self.endings if ending.refusal]
        if len(refused) == 2:
            return "both refused"
        if not refused:
            return "one after the other"
        other = next(ending for ending in self.endings if not ending.refusal)
        is_named = f"process {other.pid} on" in refused[0].refusal
        return "one refused, with the other's name" if is_named else "one refused, without a name"


@dataclass(frozen=True, slots=True)
class Course:
    """What all trials share: what is counted, an OUT that holds an older count, the true tables, seconds of a run."""

    parameters: CountParameters
    older: Path
    truth: Tables
    seconds: float


def forked(parameters: CountParameters, offset_s: float) -> tuple[Ending, Ending]:
    """Two forks of this process, the second `offset_s` later."""
    answers = [FORK.SimpleQueue() for _ in range(2)]
    rivals = [FORK.Process(target=_rival, args=(parameters, answer)) for answer in answers]
    for rival, seconds in zip(rivals, (0.0, offset_s), strict=True):
        time.sleep(seconds)
        rival.start()
    first, second = (answer.get() for answer in answers)
    for rival in rivals:
        rival.join()
    return first, second


def _rival(parameters: CountParameters, answer: Any) -> None:
    pid = FORK.current_process().pid or 0
    try:
        became = Counter(outcome.status for outcome in run_count(parameters).outcomes)
        answer.put(Ending(pid, became["counted"], became["unchanged"]))
    except Exception as error:  # a refusal, or what no run should end with
        answer.put(Ending(pid, refusal=f"{type(error).__name__}: {error}"))


def commands(parameters: CountParameters, offset_s: float) -> tuple[Ending, Ending]:
    """Two `wbc count`, the second `offset_s` later."""
    values = asdict(parameters)
    words = [values["slides"], "--out", values["out"], "--detector", values["detector"], "--classifier", "none"]
    words += ["--um-per-px", str(values["um_per_px"]), "--device", "cpu", "--workers", "1"]
    script = "from wbc.cli.main import app; app()"
    rivals = []
    for seconds in (0.0, offset_s):
        time.sleep(seconds)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        rivals.append(subprocess.Popen([sys.executable, "-c", script, "count", *words], **pipes))
    first, second = (_ending(rival) for rival in rivals)
    return first, second


def _ending(rival: "subprocess.Popen[str]") -> Ending:
    _, errors = rival.communicate()
    if rival.returncode == 0:
        return Ending(rival.pid, errors.count(" counted"), errors.count(" unchanged"))
    return Ending(rival.pid, refusal=f"exit status {rival.returncode}: {errors.strip()}")


def trials(options: Namespace) -> Iterator[Trial]:
    """The trials, one after the other."""
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        course = set_course(Path(folder), options.data, rng)
        for number in range(options.trials + options.commands):
            is_command = number >= options.trials
            compete: Callable[..., tuple[Ending, Ending]] = commands if is_command else forked
            longest = options.command_seconds if is_command else 1.2 * course.seconds
            yield run_trial(course, Path(folder) / f"out-{number}", compete, rng, longest)


def set_course(folder: Path, data: Path | None, rng: np.random.Generator) -> Course:
    """Slides, their undisturbed count, and an OUT with another."""
    fields = base_fields(data, 2 * N_SLIDES, 1)
    for i in range(N_SLIDES):
        write_slide(folder / "slides" / f"s{i}", fields[2 * i : 2 * i + 2], rng)
    detector = stub_detector(folder / "detector", DARK_LEVEL).reference
    truth, older = folder / "truth", folder / "older"
    parameters = CountParameters(str(folder / "slides"), str(truth), detector, None, um_per_px=UM_PER_PX, device="cpu")
    # In forks, as the rivals run: this process must stay without threads of its own.
    for out, scale in ((older, OTHER_UM_PER_PX), (truth, UM_PER_PX)):
        began = time.monotonic()
        alone = FORK.Process(target=run_count, args=(replace(parameters, out=str(out), um_per_px=scale),))
        alone.start()
        alone.join()
    return Course(parameters, older, read_tables(UPath(truth)), time.monotonic() - began)


def run_trial(course: Course, out: Path, compete: Any, rng: np.random.Generator, longest_s: float) -> Trial:
    """One trial in `out`, the second run up to `longest_s` after the first."""
    begun_with = str(rng.choice(["nothing", "an older count"]))
    if begun_with != "nothing":
        shutil.copytree(course.older, out)
    offset = float(rng.uniform(0, longest_s))
    endings = compete(replace(course.parameters, out=str(out)), offset)
    tables = read_tables(UPath(out)) if (out / "slides").exists() else {}
    is_true = all(name in tables and table.equals(tables[name]) for name, table in course.truth.items())
    shutil.rmtree(out, ignore_errors=True)
    return Trial(begun_with, offset, endings, is_true)


def measure(options: Namespace) -> Report:
    """How the trials ended, by what OUT held, and those that ended otherwise than they may."""
    done = list(trials(options))
    ends = Counter((trial.begun_with, trial.kind) for trial in done)
    rows: list[Row] = [{"OUT held": held, "end": kind, "trials": n} for (held, kind), n in sorted(ends.items())]
    fine = {"one after the other", "one refused, with the other's name"}
    bad: list[Row] = [
        {"trial": i, "offset": t.offset_s, "end": t.kind, "true": t.is_true, "words": [e.refusal for e in t.endings]}
        for i, t in enumerate(done)
        if not t.is_true or t.kind not in fine
    ]
    claims = [
        Claim("trials", len(done)),
        Claim("counts that differ from the undisturbed one", sum(not t.is_true for t in done), at_most=0),
        Claim("runs that ended otherwise than they may", sum(t.kind not in fine for t in done), at_most=0),
        Claim("one refused", sum("refused" in t.kind for t in done)),
    ]
    return Report("Two runs on one OUT", claims, {"Ends": rows, "Otherwise than they may": bad})


def main() -> None:
    """Compete as the command line says, and print how the trials ended."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--trials", type=int, default=200, help="with processes that have imported everything")
    arguments.add_argument("--commands", type=int, default=0, help="with whole `wbc count`s")
    arguments.add_argument(
        "--command-seconds", type=float, default=20.0, help="the longest offset between two of these"
    )
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--data", type=Path, help="a folder of real slides; rendered fields without one")
    options = arguments.parse_args()
    show(measure(options), as_json=options.json)


if __name__ == "__main__":
    main()
