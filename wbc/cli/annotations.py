"""`wbc annotations`: what people marked on pictures, checked, converted, and added to what models learn from."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wbc.cli.rows import print_rows
from wbc.cli.terminal import login, print_missing, print_remarks, usage_errors

if TYPE_CHECKING:
    from wbc.datasets.formats import CellTypeNames, Source
    from wbc.datasets.labels import LabelledPicture

app = typer.Typer(no_args_is_help=True)

SourceArgument = Annotated[Path, typer.Argument(exists=True, metavar="SOURCE", help="A file or folder of annotations.")]
Format = Annotated[str, typer.Option("--format", help="The format of SOURCE; default: as it looks.")]
Images = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the pictures; default: where SOURCE is.")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", help="LABEL=CELL_TYPE: what a label means; may be given several times.")
]
TaxonomyName = Annotated[str, typer.Option("--taxonomy", help="Whose cell types labels are, where no --name says so.")]
WrittenFormat = Annotated[str, typer.Option("--to", help="coco, via, geojson, cvat or label_studio.")]
Attribute = Annotated[str, typer.Option(help="VIA's region attribute that names a cell, where there are several.")]


@app.command("add")
def add(
    source: SourceArgument,
    store: Annotated[str, typer.Option(help="The annotation store: a folder, or the address of one.")],
    format: Format = "",
    images: Images = None,
    name: Names = None,
    taxonomy: TaxonomyName = "blood",
    attribute: Attribute = "",
    um_per_px: Annotated[float | None, typer.Option(min=0, help="Scale; default: red cells tell it.")] = None,
    by: Annotated[str | None, typer.Option(help="Who made the annotations; default: your login.")] = None,
    due: Annotated[
        int, typer.Option(min=1, envvar="WBC_TRAINING_DUE", help="From so many that wait, the server is told to train.")
    ] = 500,
) -> None:
    """Add annotations and their pictures to the store that models learn from, and tell Prefect's server.

    Nothing in the store is ever changed. A picture that was added before is labelled anew.
    """
    with usage_errors():
        from upath import UPath

        from wbc.datasets.annotation_store import AnnotationStore
        from wbc.datasets.formats import Source, read_source

        names = _names(name or [], taxonomy)
        labelled = read_source(Source(source, _folder(source, images), names, attribute, format))
        annotator = by or login()
        place = AnnotationStore(UPath(store))
        added = place.add(labelled, by=annotator, source=str(source), um_per_px=um_per_px)
        waiting = place.count_since(place.last_trained())
    typer.echo(f"{added.annotations} annotations on {added.pictures} pictures added to {store} as {added.shard}")
    typer.echo(f"{waiting} annotations wait for a training")
    from flows.events import annotations_added

    reason = annotations_added(store, added, annotator, waiting, due)
    print_remarks([] if reason is None else [f"added, but no training was told: {reason}"])


@app.command("check")
def check(
    source: SourceArgument,
    format: Format = "",
    images: Images = None,
    name: Names = None,
    taxonomy: TaxonomyName = "blood",
    attribute: Attribute = "",
    split: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE of the stems of its pictures: no source may be in two; several times."),
    ] = None,
) -> None:
    """Name what is wrong with annotations, with file and line or id, and say what is left; exit status 3 if any is.

    Boxes without area or outside their picture, unknown labels, missing pictures, doubles; sources in two splits.
    """
    with usage_errors():
        from wbc.datasets.formats import Source

        told = Source(source, _folder(source, images), _names(name or [], taxonomy), attribute, format)
        pictures, faults = _read(told)
        faults += _shared(pictures, split or [])
    _print_summary(pictures)
    print_missing(faults)


@app.command("convert")
def convert(
    source: SourceArgument,
    target: Annotated[Path, typer.Argument(help="The file to write; a folder where a format has a file a picture.")],
    to: WrittenFormat,
    format: Format = "",
    images: Images = None,
    name: Names = None,
    taxonomy: TaxonomyName = "blood",
    attribute: Attribute = "",
) -> None:
    """Write annotations in another format, with the names of cell types; what is wrong is left out and named."""
    with usage_errors():
        from wbc.datasets.formats import Source, write_pictures

        told = Source(source, _folder(source, images), _names(name or [], taxonomy), attribute, format)
        pictures, faults = _read(told)
        write_pictures(target, pictures, told.images, to)
    _print_summary(pictures)
    print_missing(faults)


@app.command("export")
def export(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    target: Annotated[Path, typer.Argument(help="The file to write; a folder where a format has a file a picture.")],
    to: WrittenFormat,
    slide: Annotated[
        list[str] | None, typer.Option(help="The slide_id of a slide; default: all; several times.")
    ] = None,
) -> None:
    """Write a count's cells as annotations, for a reviewer to look at: names, scores and cell_id of each."""
    with usage_errors():
        from upath import UPath

        from wbc.cli.show import counted_slides
        from wbc.datasets.exported_cells import common_folder, counted_pictures
        from wbc.datasets.formats import write_pictures

        pictures = counted_pictures(UPath(out), counted_slides(out, slide or ()))
        if not pictures:
            raise ValueError(f"{out}: no field was counted")
        folder = common_folder(pictures)
        write_pictures(target, pictures, folder, to)
    typer.echo(f"{sum(len(p.labels) for p in pictures)} cells of {len(pictures)} fields below {folder} in {target}")


def _read(source: "Source") -> "tuple[list[LabelledPicture], list[str]]":
    """What is usable of a source, and what is wrong with it. Raises ValueError where it cannot be read at all."""
    from wbc.datasets.formats import read_source

    faults: list[str] = []
    pictures = read_source(source, faults)
    if not any(picture.labels for picture in pictures):
        faults.append(f"{source.annotations}: no annotation that can be used")
    return pictures, faults


def _shared(pictures: "list[LabelledPicture]", splits: list[str]) -> list[str]:
    """What is wrong with splits of pictures, given as NAME=FILE of stems."""
    from wbc.datasets.splits import check_apart, prints_of

    sides = {}
    for name, sign, file in (split.partition("=") for split in splits):
        if not sign:
            raise ValueError(f"--split {name}: is not NAME=FILE")
        stems = set(Path(file).read_text().split())
        sides[name] = [p for p in pictures if p.path.stem in stems or p.path.name in stems]
    try:
        check_apart({name: prints_of(side) for name, side in sides.items()})
    except ValueError as error:
        return [str(error)]
    return []


def _print_summary(pictures: "list[LabelledPicture]") -> None:
    counts = Counter(label for picture in pictures for label in picture.labels)
    print_rows(("cell type", "annotations"), [(kind, str(n)) for kind, n in counts.most_common()])
    typer.echo(f"{counts.total()} annotations on {len(pictures)} pictures can be used")
    if len(counts) == 1:
        print_remarks([f"every annotation is {next(iter(counts))}: a model learns no difference from one type alone"])


def _folder(source: Path, images: Path | None) -> Path:
    """Where the pictures of a source are."""
    return images or (source if source.is_dir() else source.parent)


def _names(given: list[str], taxonomy: str) -> "CellTypeNames":
    from wbc.datasets.formats import CellTypeNames
    from wbc.taxonomy import load_taxonomy

    pairs = [pair.partition("=") for pair in given]
    if wrong := [label + sign for label, sign, cell_type in pairs if not cell_type]:
        raise ValueError(f"--name {wrong[0]}: is not LABEL=CELL_TYPE")
    return CellTypeNames(load_taxonomy(taxonomy), {label: cell_type for label, _, cell_type in pairs})
