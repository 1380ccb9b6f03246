"""A laboratory teaches a classifier: cells of its counts worth naming, and a model made of their names."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.appearance import KnownLooks, appearance
from wbc.cells.classify import features
from wbc.datasets.cell_names import COUNTED_AS, NUMBER, check_names, match, read_cell_names
from wbc.datasets.contact_sheet import draw_sheet
from wbc.datasets.counted_cells import SIDES, Cut, cut_cells, read_cells, slide_rows, white_cells
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops
from wbc.models import registry
from wbc.models.cards import ModelCard, Teaching
from wbc.models.last_layer import with_lower_levels
from wbc.models.reference_cells import keep_reference_cells
from wbc.models.registry import LoadedModel, ModelError, ModelRef
from wbc.revision import code_revision
from wbc.storage.atomic import staged
from wbc.storage.names import address
from wbc.storage.tables import SlideRow
from wbc.taxonomy import NOT_A_WHITE_CELL, Taxonomy, load_taxonomy, shipped_taxonomies
from wbc.training.body import FEWEST_CELLS, Replay, Trial, try_body
from wbc.training.choice import choose, shortlist
from wbc.training.last_layer import NamedCells, cross_validate
from wbc.training.own_reference import reference_of, stands_for
from wbc.training.taught_layer import fitted, named_cells, own_layer

TABLE, SHEET = "cells.csv", "cells.jpg"
FEWEST = 10
MOST_UNNAMED = 500  # cells without names that teach, too: their features cost 20 CPU-ms each
DEFAULT_CLASSIFIER = "bundled:classifier"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A count that is to teach a classifier: OUT, the classifier and taxonomy where not the count's, the device, and
    what the body learns on from beside the cells, if it is to."""

    out: UPath
    classifier: str | None = None
    taxonomy: str | None = None
    device: str = "cpu"
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Cells that wait for names: the table to fill in, the sheet that shows them, how many of each type they are."""

    table: Path
    sheet: Path
    kinds: dict[str, int]
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What came of teaching: the model's card, and for each cell held out its name and whether it is right, before and
    after.

    `trial` is what the body was worth, None where it was not tried. `unnamed` are the classes that no name covers: what
    is learnt speaks against them. `tells_misnaming` says whether these cells tell how the model misnames its
    laboratory's: of some of them nobody knows by what they were chosen.
    """

    card: ModelCard
    names: tuple[str, ...]
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    trial: Trial | None
    unnamed: tuple[str, ...]
    passed_over: tuple[str, ...]
    tells_misnaming: bool

    @property
    def is_new(self) -> bool:
        """Whether the model differs from its parent."""
        return self.card.taught is not None and self.card.taught.last_layer == "fitted"


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """The cells that have names: as the last layer gets them, as the count cut them, and what a body made of them.

    `weights` are how many of the laboratory's cells each stands for, None where nothing tells how they were chosen.
    `fuller` is the classifier whose last layer is fitted.
    """

    examples: NamedCells
    cut: Cut
    fuller: LoadedModel
    trial: Trial | None
    weights: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """The model that is saved, and whether each of some cells is right that were held out, before and after.

    `which` are their numbers among the named ones, `chances` the class probabilities that the model gave them, not
    taught by them.
    """

    model: LoadedModel
    which: NDArray[np.int64]
    chances: NDArray[np.floating]
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    last_layer: Literal["fitted", "kept"]
    replayed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """What a lesson is about: counted slides, the classifier that is taught, the taxonomy of the names."""

    rows: dict[str, SlideRow]
    ref: ModelRef
    model: LoadedModel
    taxonomy: Taxonomy


def propose(lesson: Lesson, folder: Path, per_kind: int) -> Proposal:
    """Write a table and a contact sheet of the cells most worth naming to `folder`: `per_kind` of each type counted.

    Raises ValueError where there is nothing to name, or the folder has a table in which somebody wrote names.
    """
    _check_unfilled(folder / TABLE)
    subject = _subject(lesson)
    cells = white_cells(read_cells(lesson.out, list(subject.rows)))
    if cells.empty:
        raise ValueError(f"{str(lesson.out)!r}: no white cell was counted here")
    cells = cells.iloc[shortlist(cells["cell_type"].tolist(), _scores(cells), per_kind)].reset_index(drop=True)
    cut = cut_cells(lesson.out, cells, subject.rows, subject.model.card)
    cells = cells.iloc[cut.rows].reset_index(drop=True)
    if cells.empty:
        raise ValueError(f"no field can be read: {'; '.join(cut.passed_over[:3])}")
    seen = features(cut.crops, subject.model).mean(1)
    chosen = choose(seen, cells["cell_type"].tolist(), _scores(cells), per_kind)
    files = {UPath(folder / SHEET): draw_sheet(cut.crops[chosen]), UPath(folder / TABLE): _table(cells.iloc[chosen])}
    with staged(files, durable=False):
        pass
    kinds = dict(sorted(Counter(cells["cell_type"].iloc[chosen]).items()))
    return Proposal(folder / TABLE, folder / SHEET, kinds, cut.passed_over)


def teach(lesson: Lesson, names: Sequence[Path], folder: Path, by: str) -> Taught:
    """Fit a new last layer to the named cells and save the whole classifier in `folder`, if held out cells gain by it.

    Where they do not, the model has its parent's last layer, and its card says `kept`. Cells that nobody named, of the
    slides that have named ones, teach the layer, too. With something to replay and enough cells the body learns on, and
    is taken if cells held out gain more by that. Raises ValueError, naming file and line, for names that cannot be
    used, or where fewer than FEWEST cells are left.
    """
    subject = _subject(lesson)
    _check_target(folder, subject.ref)
    given = [name for path in names for name in read_cell_names(path)]
    check_names(given, subject.taxonomy, subject.model.card.classes)
    slide_ids = sorted({name.slide_id for name in given} & subject.rows.keys())
    counted = read_cells(lesson.out, slide_ids or list(subject.rows))
    cells = match(given, counted)
    cut = cut_cells(lesson.out, cells, subject.rows, subject.model.card)
    cells = cells.iloc[cut.rows]
    if len(cells) < FEWEST:
        without = f", and fields were passed over: {'; '.join(cut.passed_over[:3])}" if cut.passed_over else ""
        raise ValueError(f"{len(cells)} cells have names, {FEWEST} at least are needed{without}")
    named = tuple(cells["name"])
    fuller = with_lower_levels(subject.model)
    others = cut_cells(lesson.out, unnamed_cells(cells, counted), subject.rows, subject.model.card).crops
    examples = named_cells(cut.crops, named, fuller, subject.taxonomy, others)
    trial, weights = _trial(lesson, subject, cells, named), stands_for(cells, white_cells(counted))
    return _save(lesson, subject, _Named(examples, cut, fuller, trial, weights), folder, by)


def unnamed_cells(named: pd.DataFrame, counted: pd.DataFrame) -> pd.DataFrame:
    """White cells `counted` that are not among the `named` ones, MOST_UNNAMED at most.

    As many of each type counted as can be, drawn from all slides and fields: of normal blood as it is, common types
    would drown rare ones.
    """
    key = ["slide_id", "field", "cell_id"]
    white = white_cells(counted)
    is_named = pd.MultiIndex.from_frame(white[key]).isin(pd.MultiIndex.from_frame(named[key]))
    others = white[~is_named & (white["cell_type"] != NOT_A_WHITE_CELL)].sample(frac=1, random_state=0)
    turn = others.groupby("cell_type").cumcount().to_numpy()
    return others.iloc[np.argsort(turn, kind="stable")[:MOST_UNNAMED]].sort_index().reset_index(drop=True)


def _trial(lesson: Lesson, subject: _Subject, cells: pd.DataFrame, named: tuple[str, ...]) -> Trial | None:
    """What the body is worth, where it is to learn and the cells are enough."""
    if lesson.replay is None or len(cells) < FEWEST_CELLS:
        return None
    window = replace(subject.model.card, input_px=PATCH_PX, um_per_px=PATCH_UM / PATCH_PX)
    patches = cut_cells(lesson.out, cells, subject.rows, window).crops
    return try_body(Crops(patches, named), subject.model, subject.ref, lesson.replay)


def _save(lesson: Lesson, subject: _Subject, given: _Named, folder: Path, by: str) -> Taught:
    chosen, names = _chosen(subject, given), given.examples.names
    beside = subject.model.beside
    if chosen.last_layer == "fitted" and (looks := KnownLooks.from_arrays(beside)) is not None:
        beside = looks.including(appearance(given.cut.crops)).arrays()  # the laboratory is no stranger any more
    kinds = dict(sorted(Counter(names).items()))
    unnamed = 0 if chosen.last_layer == "kept" or chosen.replayed else len(given.examples.others)
    taught = Teaching(by, address(lesson.out), len(names), kinds, chosen.last_layer, chosen.replayed, unnamed)
    metrics = {"cells held out right before": chosen.before.mean(), "cells held out right after": chosen.after.mean()}
    card = replace(
        chosen.model.card,
        name=folder.resolve().name,
        metrics={name: round(float(value), 4) for name, value in metrics.items()},
        dataset=f"{len(names)} cells of {taught.out}",
        code_revision=code_revision(),
        parents=(subject.ref,),
        taught=taught,
    )
    card = registry.save(folder, chosen.model.module, card, beside)
    held_out = tuple(names[i] for i in chosen.which)
    weights = None if given.weights is None else given.weights[chosen.which]
    is_own = chosen.last_layer == "fitted"
    reference = reference_of(subject.ref, chosen.chances, held_out, weights, taught.out, is_own=is_own)
    if reference is not None:
        card = keep_reference_cells(folder, reference)
    without = tuple(name for i, name in enumerate(card.classes) if not given.examples.covers[:, i].any())
    seen = given.trial, without, given.cut.passed_over
    return Taught(card, held_out, chosen.before, chosen.after, *seen, tells_misnaming=weights is not None)


def _chosen(subject: _Subject, given: _Named) -> _Chosen:
    """The best of the ways to teach: the body where it pays, else a new last layer, else the one that there was."""
    trial, examples, model = given.trial, given.examples, subject.model
    if trial is not None and trial.pays:
        body = replace(model, module=trial.module)
        return _Chosen(body, trial.held_out, trial.chances, trial.before, trial.body, "fitted", trial.sets)
    gain, every = cross_validate(examples, own_layer(given.fuller)), np.arange(len(examples.names))
    if not gain.pays:
        return _Chosen(model, every, gain.chances_before, gain.before, gain.after, "kept")
    new = fitted(given.fuller, examples, gain.strength)
    return _Chosen(new, every, gain.chances, gain.before, gain.after, "fitted")


def _subject(lesson: Lesson) -> _Subject:
    rows = slide_rows(lesson.out)
    ref, card = registry.resolve(lesson.classifier or _classifier_of(rows.values()), "classifier")
    while card.taught is not None:  # by cells that may be held out now: what they gain would be told too high or low
        (parent,) = card.parents
        ref, card = registry.resolve(parent.reference, "classifier")
        if ref.digest != parent.digest:
            raise ModelError(f"{parent.reference!r}, which was taught before, is another model now")
    taxonomy = load_taxonomy(lesson.taxonomy or _taxonomy_of(rows.values()))
    return _Subject(rows, ref, registry.load(ref, lesson.device), taxonomy)


def _classifier_of(rows: Iterable[SlideRow]) -> str:
    """The classifier that counted the slides. Raises ValueError where they are several, or it is another one now."""
    words = sorted({row.classifier for row in rows if row.classifier is not None})
    if len(words) > 1:
        raise ValueError(f"the slides were counted with {' and '.join(words)}: say which to teach with --classifier")
    if not words:
        return DEFAULT_CLASSIFIER
    reference, _, digits = words[0].rpartition("@")
    if not registry.read_card(reference).digest.startswith(digits):
        raise ValueError(f"{reference!r} is not the model any more that counted: say which to teach with --classifier")
    return reference


def _taxonomy_of(rows: Iterable[SlideRow]) -> str:
    """The taxonomy that the slides were counted by. Raises ValueError where they are several, or it has a file."""
    names = sorted({row.taxonomy for row in rows})
    if len(names) > 1 or names[0] not in shipped_taxonomies():
        raise ValueError(f"the slides were counted by taxonomy {' and '.join(names)}: name one with --taxonomy")
    return names[0]


def _check_unfilled(table: Path) -> None:
    """Raises ValueError where somebody's names would be written over."""
    if table.is_file() and read_cell_names(table):
        raise ValueError(f"{table} has names in it: teach with --names {table}, or name another --out")


def _check_target(folder: Path, parent: ModelRef) -> None:
    """Raises ValueError where the model that is to be written would replace one that nobody taught."""
    if (folder / registry.CARD).is_file() and registry.read_card(str(folder)).taught is None:
        raise ValueError(
            f"{folder} holds a model that was not taught: name another --out for what {parent.reference} becomes"
        )


def _scores(cells: pd.DataFrame) -> NDArray[np.float64]:
    """How sure the count was of each cell's type, 0 where no classifier ran."""
    return cells["type_score"].fillna(0).to_numpy(np.float64)


def _table(cells: pd.DataFrame) -> bytes:
    """The CSV to fill in, a line for each cell as the sheet numbers them."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow((NUMBER, "slide_id", "field", "cell_id", COUNTED_AS, "type_score", "cell_type", *SIDES))
    for number, cell in enumerate(cells.to_dict("records"), 1):
        score = "" if pd.isna(cell["type_score"]) else f"{cell['type_score']:.2f}"
        found = (number, cell["slide_id"], cell["field"], cell["cell_id"], cell["cell_type"], score, "")
        writer.writerow((*found, *(f"{cell[side]:.2f}" for side in SIDES)))
    return sink.getvalue().encode()
