"""The file tree of an image, built without an engine: the Dockerfile's own steps in a chroot, and what they weigh.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm BASE
    python -m benchmarks.image_tree BASE TREE --target wbc --arg TORCH_BACKEND=

BASE stands for the base image; every stage is laid over it as the engine would (overlayfs, so root and Linux are
needed). TREE gets the target's whole root, without what BASE has. Prints sizes in MB (10⁶ bytes, files as they are).
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
BIG_MB = 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """A stage of the Dockerfile: where it starts from, and its instructions."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages_of(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = stage = Stage(base)
        elif stages:
            stage.steps.append((word, rest.strip()))
    return stages


class Builder:
    """Lays stages over BASE in WORK, each once."""

    def __init__(self, base: Path, work: Path, arguments: dict[str, str]) -> None:
        self.base, self.work, self.arguments = base, work, arguments
        self.stages = stages_of(DOCKERFILE.read_text())
        self.layers: dict[str, list[Path]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.folders: dict[str, str] = {}

    def build(self, name: str) -> list[Path]:
        """The layers of a stage, its own first."""
        if name not in self.stages:
            return [self.base]
        if name not in self.layers:
            below = self.build(self.stages[name].base)
            own = self.work / name / "layer"
            own.mkdir(parents=True)
            self.layers[name] = [own, *below]
            self.environments[name] = dict(self.environments.get(self.stages[name].base, {"PATH": PATH}))
            self._run_steps(name)
        return self.layers[name]

    def _run_steps(self, name: str) -> None:
        folder, values = self.folders.get(self.stages[name].base, "/"), self.environments[name]
        for word, rest in self.stages[name].steps:
            if word == "ARG":
                key, _, default = rest.partition("=")
                values[key] = self.arguments.get(key, default)
            elif word == "ENV":
                values |= dict(pair.split("=", 1) for pair in shlex.split(_filled(rest, values)))
            elif word == "WORKDIR":
                folder = rest
                self._inside(name, f"mkdir -p {rest}", "/", values)
            elif word == "RUN":
                self._inside(name, rest, folder, values)
            elif word == "COPY":
                self._copy(name, rest.split(), folder)
        self.folders[name] = folder

    def _inside(self, name: str, command: str, folder: str, values: dict[str, str]) -> None:
        """Run a command in a stage's tree."""
        own, *below = self.layers[name]
        lower, root, scratch = ":".join(map(str, below)), self.work / name / "root", self.work / name / "scratch"
        root.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        script = f"""set -e
            mount -t overlay overlay -o lowerdir={lower},upperdir={own},workdir={scratch} {root}
            for place in /proc /dev /etc/resolv.conf /etc/ssl/certs; do
                [ -e {root}$place ] || touch {root}$place; mount --rbind $place {root}$place; done
            exec chroot {root} /bin/sh -e -c {shlex.quote(f"cd {folder}; {command}")}"""
        certificates = {key: value for key, value in os.environ.items() if key.startswith("SSL_CERT")}
        print(f"[{name}] {command[:100]}", flush=True)
        environment = values | certificates
        subprocess.run(["unshare", "--mount", "/bin/sh", "-c", script], env=environment, check=True)

    def _copy(self, name: str, words: list[str], folder: str) -> None:
        *sources, target = [word for word in words if not word.startswith("--from=")]
        origin = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        for source in sources:
            if origin is None:
                found = [ROOT / source]
            else:  # what lies lower is written first
                found = [layer / source.lstrip("/") for layer in reversed(self.build(origin)[:-1])]
            place = self.layers[name][0] / Path(folder, target).as_posix().lstrip("/")
            for tree in filter(Path.exists, found):
                if tree.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "secrets") if origin is None else None
                    shutil.copytree(tree, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
                else:
                    to = place / tree.name if target.endswith("/") else place
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(tree, to)


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], ""), text)


def megabytes(folder: Path) -> float:
    """What the files below a folder hold, in 10⁶ bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink()) / 1e6


def main() -> None:
    """Build and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--target", default="wbc")
    parser.add_argument("--arg", action="append", default=[])
    words = parser.parse_args()
    builder = Builder(words.base, words.tree, dict(word.split("=", 1) for word in words.arg))
    layers = builder.build(words.target)
    packages = next((layers[0] / "opt/venv/lib").glob("python*/site-packages"))
    parts = {path.name: round(megabytes(path)) for path in packages.iterdir() if path.is_dir()}
    print(json.dumps({name: mb for name, mb in sorted(parts.items(), key=lambda part: -part[1]) if mb >= BIG_MB}))
    base = megabytes(words.base)
    own = sum(map(megabytes, layers[:-1]))
    print(f"{words.target}: {base + own:.0f} MB, {base:.0f} of them the base's")


if __name__ == "__main__":
    main()
