"""The documents' pictures, made anew by `python docs/pictures.py`: a real count of rendered slides, and measured bars.

pictures/terminal.svg shows what `wbc count` printed, pictures/annotated.jpg the middle of an annotated field,
pictures/peers.svg the table of measurements.md that holds the detector beside others.
"""

import io
import os
import pty
import re
import shlex
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 92
LAST_FRAME = re.compile(r".*\x1b\[2K", re.DOTALL)


def run_in_terminal(command: str, folder: str) -> str:
    """What a command writes to a terminal, run in `folder`; of its progress bar the last frame."""
    os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    os.chdir(folder)
    written = bytearray()

    def read(terminal: int) -> bytes:
        content = os.read(terminal, 65536)
        written.extend(content)
        return content

    pty.spawn([sys.executable, "-c", "from wbc.cli.main import app; app()", *shlex.split(command)[1:]], read)
    text = written.decode().replace("\r\n", "\n").replace("\r", "")
    return re.sub(r"\x1b\[\?25[lh]", "", LAST_FRAME.sub("", text)).strip("\n")


def draw_terminal(command: str, output: str, target: Path) -> None:
    """A picture of a terminal with a command and what it wrote."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(output))
    # Without fonts from elsewhere: the reader's own will do.
    target.write_text(re.sub(r"@font-face {.*?}", "", console.export_svg(title="wbc"), flags=re.DOTALL))


def draw_peers(measurements: str, target: Path) -> None:
    """Bars of CPU-seconds a field and AP50 of each way, by the table that `benchmarks.peers` printed."""
    from matplotlib.figure import Figure

    table = measurements.split("## The detector beside others")[1].split("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[2].splitlines()
    ]
    names = [row[0] for row in rows]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("CPU s a field", "AP50"), strict=True):
        values = [float(row[head.index(column)]) for row in rows]
        axes.bar_label(axes.barh(names, values, color=["#b03060" if n.startswith("wbc") else "#999999" for n in names]))
        axes.set(xlabel=column, xlim=(0, max(values) * 1.2))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    draw_peers((PICTURES.parent / "measurements.md").read_text(), PICTURES / "peers.svg")
    with tempfile.TemporaryDirectory() as folder:
        run_in_terminal("wbc synth slides --slides 1 --fields 8 --seed 1", folder)
        command = "wbc count slides --out out --annotate"
        draw_terminal(command, run_in_terminal(command, folder), PICTURES / "terminal.svg")
        first = sorted(Path(folder, "out", "annotated").rglob("*.jpg"))[0]
        with Image.open(first) as field:
            w, h = field.size
            middle = field.crop((w // 8, h // 8, w * 7 // 8, h * 7 // 8))
            middle.resize((w // 2, h // 2), Image.Resampling.LANCZOS).save(
                PICTURES / "annotated.jpg", quality=78, optimize=True
            )


if __name__ == "__main__":
    main()
