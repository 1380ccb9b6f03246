"""`wbc version` and `wbc doctor`: what this installation is, and whether it and an OUT are in order."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed_version
from typing import Annotated, Literal

import typer

from wbc import __version__
from wbc.cli.options import AsJson
from wbc.cli.rows import print_rows
from wbc.cli.terminal import NOT_ALL_COUNTED, usage_errors

State = Literal["ok", "note", "wrong"]

LIBRARIES = ("torch", "torchvision", "timm", "prefect", "distributed", "zarr", "pyarrow", "pandas", "numpy")
LEAST_FREE_BYTES = 2 << 30
SERVER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and how it is."""

    subject: str
    state: State
    fact: str


def version(as_json: AsJson = False) -> None:
    """Print the version of wbc, and of the libraries it stands on."""
    from wbc.revision import code_revision

    facts = {"wbc": __version__, "code revision": code_revision()[:12], "python": platform.python_version()}
    facts |= {name: _installed(name) or "not installed" for name in LIBRARIES}
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        print_rows(("part", "version"), facts.items())


def doctor(
    out: Annotated[str | None, typer.Argument(help="A folder of results, to check its tables too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation: libraries, devices, bundled models, Prefect's server, free disk; and OUT, if you name it.

    It changes nothing. The exit status is 3 where something is wrong.
    """
    with usage_errors():
        checks = [*_libraries(), *_devices(), *_models(), _server(), _disk("temporary files", tempfile.gettempdir())]
        if out is not None:
            checks += _results(out)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1, ensure_ascii=False))
    else:
        print_rows(("what", "", "how it is"), [(c.subject, c.state, c.fact) for c in checks])
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(NOT_ALL_COUNTED)


def _installed(name: str) -> str | None:
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return None


def _libraries() -> Iterator[Check]:
    """Python and each library that wbc needs, against the versions that it asks for."""
    from packaging.requirements import Requirement

    supported = sys.version_info >= (3, 11)
    yield Check("python", "ok" if supported else "wrong", f"{platform.python_version()}, 3.11 or newer is needed")
    for line in requires("wbc") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        demand = f", {requirement.specifier} is needed" if requirement.specifier else ""
        yield Check(requirement.name, "ok" if fits else "wrong", f"{version or 'not installed'}{demand}")


def _devices() -> Iterator[Check]:
    """The processors and GPUs that models can run on."""
    import psutil  # type: ignore[import-untyped]
    import torch

    from wbc.models.bfloat16 import has_bfloat16

    memory = psutil.virtual_memory().total / 2**30
    devices = {"cpu": f"{os.cpu_count()} cores, {memory:.0f} GiB of memory"}
    for i in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{own.name}, {own.total_memory / 2**30:.0f} GiB of memory"
    for name, fact in devices.items():
        number_format = "bfloat16" if has_bfloat16(torch.device(name)) else "float32"
        yield Check(name, "ok", f"{fact}; models run in {number_format}")
    if len(devices) == 1:
        yield Check("cuda", "note", "no GPU that PyTorch can use: models run on the processor")


def _models() -> Iterator[Check]:
    """The bundled models, their weights held against their cards."""
    from wbc.models.registry import ModelError, bundled_models, read_card

    for reference in bundled_models():
        try:
            card = read_card(reference)
        except ModelError as error:
            yield Check(reference, "wrong", str(error))
        else:
            yield Check(reference, "ok", f"{card.name} {card.version}, {card.digest[:12]}, its weights match its card")


def _server() -> Check:
    """Prefect's server, where one is set."""
    import httpx

    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return Check("Prefect server", "note", "PREFECT_API_URL is not set: each count starts a private server")
    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=SERVER_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Check("Prefect server", "wrong", f"{address} does not answer: {error}")
    return Check("Prefect server", "ok", f"{address} answers")


def _disk(subject: str, folder: str) -> Check:
    free = shutil.disk_usage(folder).free
    return Check(subject, "ok" if free >= LEAST_FREE_BYTES else "wrong", f"{free / 2**30:.1f} GiB are free in {folder}")


def _results(out: str) -> Iterator[Check]:
    """The folder of a count's results. Raises FileNotFoundError where there is none."""
    from upath import UPath

    from wbc.cli.tables import counted
    from wbc.storage.atomic import local_path
    from wbc.storage.health import inspect
    from wbc.storage.layout import Layout

    folder = UPath(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of results: {out}")
    if (local := local_path(folder)) is not None:
        yield _disk("OUT", local)
    n_wrong = 0
    for finding in inspect(folder):
        n_wrong += 1
        yield Check(finding.path, "wrong", finding.fact)
    n = len(Layout(folder).slide_ids())
    yield Check(
        "OUT",
        "ok" if n else "note",
        f"{counted(n, 'slide')} counted, {counted(n_wrong, 'problem') if n_wrong else 'no problems'}",
    )
