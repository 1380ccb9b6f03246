"""What a command costs beside its work: `wbc count` with nothing to do, `wbc show`, and `wbc count` with work.

Each is run as a user runs it, in processes of its own, several times; the least of the rounds is the figure.
CPU-seconds are those of all its processes. Of a run with work, the models' own time is what its tables tell (`seconds`:
`detect` and `classify`, summed over fields and shared out among the workers), in the same run.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from upath import UPath

from benchmarks.common import Claim, Report, long_slide, parser, show
from wbc.storage.counts import read_slide_row
from wbc.storage.layout import Layout

NOTHING_SECONDS, SHOW_SECONDS, BEYOND_SECONDS = 3.0, 1.5, 12.0
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: seconds on the clock, and CPU-seconds of all its processes."""

    wall: float
    cpu: float


def run(words: Sequence[str], home: Path) -> Cost:
    """Run `wbc` with these words, Prefect's database in `home`. Raises CalledProcessError where it fails."""
    environment = os.environ | {"PREFECT_HOME": str(home)}
    command = [str(Path(sys.executable).with_name("wbc")), *words]
    used: dict[int, float] = {}
    began, ended = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        while not ended:
            _sample(process.pid, used)
            time.sleep(SAMPLE_SECONDS)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        told = process.stderr.read() if process.stderr else b""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=told)
    # Samples miss the last moments; what the system tells misses processes that the command does not wait for.
    return Cost(wall, max(sum(used.values()), usage.ru_utime + usage.ru_stime))


def _sample(pid: int, used: dict[int, float]) -> None:
    """Note the CPU-seconds of a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system


def measure(slides: Path, folder: Path, rounds: int, workers: int) -> Report:
    """All figures of counting the slides in `slides` into new folders below `folder`."""
    home = folder / "prefect"
    words = ["--device", "cpu", "--workers", str(workers)]
    counted = []
    for i in range(rounds):
        out = folder / f"out-{i}"
        cost = run(["count", str(slides), "--out", str(out), *words], home)
        counted.append((cost, model_seconds(UPath(out)) / workers))
    # What takes least tells least of the machine's other work, so it is asked more often.
    nothing = [run(["count", str(slides), "--out", str(out), *words], home) for _ in range(3 * rounds)]
    shown = [run(["show", str(out)], home) for _ in range(3 * rounds)]
    beyond_seconds = min(cost.wall - models for cost, models in counted)
    least = {"nothing to do": _least(nothing), "show": _least(shown)}
    return Report(
        "Start-up",
        [
            Claim("`wbc count` with nothing to do", least["nothing to do"].wall, "s", at_most=NOTHING_SECONDS),
            Claim("`wbc show`", least["show"].wall, "s", at_most=SHOW_SECONDS),
            Claim("a run with work, beyond its models", beyond_seconds, "s", at_most=BEYOND_SECONDS),
        ],
        {
            "With work": [
                {"round": i, "wall s": c.wall, "models s": m, "beyond s": c.wall - m, "CPU-s": c.cpu}
                for i, (c, m) in enumerate(counted, 1)
            ],
            "Without": [{"command": k, "wall s": c.wall, "CPU-s": c.cpu} for k, c in least.items()],
        },
        [
            f"The least of {rounds} rounds with work and of {3 * rounds} without; {workers} workers, {os.cpu_count()} "
            f"cores, load {os.getloadavg()[1]:.1f} in the last five minutes; {_bytecode()}."
        ],
    )


def model_seconds(out: UPath) -> float:
    """How long the models ran, over all fields of all slides in `out`."""
    rows = [read_slide_row(out, slide_id) for slide_id in Layout(out).slide_ids()]
    return sum(row.seconds.detect + row.seconds.classify for row in rows)


def _least(costs: Sequence[Cost]) -> Cost:
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs))


def _bytecode() -> str:
    """Whether libraries are compiled, which their import takes twice as long without."""
    torch = importlib.util.find_spec("torch")
    cached = torch is not None and torch.cached is not None and Path(torch.cached).exists()
    return "libraries are compiled to bytecode" if cached else "libraries are not compiled to bytecode"


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--fields", type=int, default=12)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    command.add_argument("--size", type=int, nargs=2, default=[1920, 2560], metavar=("HEIGHT", "WIDTH"))
    chosen = command.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = long_slide(folder, chosen.fields, None, *chosen.size)
        slides = folder / "slides"
        slides.mkdir()
        Path(slide.field_paths[0].path).parent.rename(slides / "slide-01")
        show(measure(slides, folder, chosen.rounds, chosen.workers), as_json=chosen.json)


if __name__ == "__main__":
    main()
