"""`wbc annotations`: what people marked on pictures, checked, converted, and added to what models learn from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wbc.cli.terminal import login, print_remarks, usage_errors

if TYPE_CHECKING:
    from wbc.datasets.formats import Source

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
        from wbc.datasets.formats import read_source

        labelled = read_source(_source(source, images, name or [], taxonomy, attribute), format)
        annotator = by or login()
        place = AnnotationStore(UPath(store))
        added = place.add(labelled, by=annotator, source=str(source), um_per_px=um_per_px)
        waiting = place.count_since(place.last_trained())
    typer.echo(f"{added.annotations} annotations on {added.pictures} pictures added to {store} as {added.shard}")
    typer.echo(f"{waiting} annotations wait for a training")
    from flows.events import annotations_added

    reason = annotations_added(store, added, annotator, waiting, due)
    print_remarks([] if reason is None else [f"added, but no training was told: {reason}"])


def _source(source: Path, images: Path | None, given: list[str], taxonomy: str, attribute: str) -> "Source":
    from wbc.datasets.formats import CellTypeNames, Source
    from wbc.taxonomy import load_taxonomy

    pairs = [pair.partition("=") for pair in given]
    if wrong := [label + sign for label, sign, cell_type in pairs if not cell_type]:
        raise ValueError(f"--name {wrong[0]}: is not LABEL=CELL_TYPE")
    names = CellTypeNames(load_taxonomy(taxonomy), {label: cell_type for label, _, cell_type in pairs})
    return Source(source, images or (source if source.is_dir() else source.parent), names, attribute)
