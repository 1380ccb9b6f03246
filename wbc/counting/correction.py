"""How a count's classifier names cells of known type, by the function and rules that name a slide's own cells.

OUT keeps a copy of the classifier's reference cells: all counts go by it, so that a recount, which has no model, tells
the same percentages.
"""

from functools import lru_cache

from upath import UPath

from wbc.cells.certainty import Certainty, certainty_of
from wbc.cells.naming import name_cells
from wbc.misnaming import confusion_of
from wbc.models.reference_cells import ReferenceCells, reference_content
from wbc.models.registry import ModelError, ModelRef, sha256_of
from wbc.storage.atomic import write_whole
from wbc.storage.detections import Kinds
from wbc.storage.layout import Layout
from wbc.taxonomy import Taxonomy
from wbc.unfolding import Confusion


def keep_reference(out: UPath, classifier: ModelRef | None, kinds: Kinds | None) -> None:
    """See that OUT has the reference cells of what named a slide's cells. For the run that holds OUT.

    Raises ModelError where they are not the model's, OSError where they cannot be written.
    """
    if classifier is None or kinds is None or not kinds.reference_sha256:
        return
    copy = Layout(out).reference_cells(kinds.reference_sha256)
    if copy.is_file() and sha256_of(copy.read_bytes()) == kinds.reference_sha256:
        return
    content = reference_content(classifier) or b""
    if sha256_of(content) != kinds.reference_sha256:
        raise ModelError(f"{classifier.reference!r} has other reference cells than the count began with")
    write_whole(copy, content)


@lru_cache(maxsize=8)
def kept_confusion(
    out: UPath, kinds: Kinds | None, taxonomy: Taxonomy, *, is_strange: bool = False
) -> Confusion | None:
    """How a classifier misnames the cells of a slide, a stranger's or not, by the reference cells in OUT.

    None where it has none, or they measure no kind. Raises ValueError where they are not there whole, or the taxonomy
    does not know the classifier's classes.
    """
    cells = _kept_cells(out, kinds)
    return confusion_of_cells(cells, kinds, taxonomy, is_strange=is_strange) if cells and kinds else None


@lru_cache(maxsize=8)
def kept_certainty(out: UPath, kinds: Kinds | None, taxonomy: Taxonomy) -> Certainty | None:
    """How often a classifier's names are right on a stranger's slide, by the reference cells in OUT.

    None where it has none. Raises ValueError as `kept_confusion` does.
    """
    cells = _kept_cells(out, kinds)
    return certainty_of_cells(cells, kinds, taxonomy) if cells and kinds else None


def _kept_cells(out: UPath, kinds: Kinds | None) -> ReferenceCells | None:
    if kinds is None or not kinds.reference_sha256:
        return None
    try:
        content = Layout(out).reference_cells(kinds.reference_sha256).read_bytes()
    except FileNotFoundError:
        content = b""
    if sha256_of(content) != kinds.reference_sha256:
        raise ValueError("the reference cells of its classifier are not in OUT any more")
    return ReferenceCells.from_bytes(content)


def confusion_of_cells(
    cells: ReferenceCells, kinds: Kinds, taxonomy: Taxonomy, *, is_strange: bool = False
) -> Confusion | None:
    """How reference cells are named by a taxonomy; None where no kind is measured.

    Of a stranger's slide the classifier's own laboratory tells nothing.
    """
    cells = cells.elsewhere if is_strange else cells
    named = name_cells(cells.probabilities, kinds.names, taxonomy, kinds.threshold_of(is_strange=is_strange)).types
    return confusion_of(list(named), cells.cell_types, cells.laboratories, cells.own, taxonomy, cells.weights)


def certainty_of_cells(cells: ReferenceCells, kinds: Kinds, taxonomy: Taxonomy) -> Certainty:
    """How often the names are right that a taxonomy gives reference cells on a stranger's slide."""
    cells = cells.elsewhere
    named = name_cells(cells.probabilities, kinds.names, taxonomy, kinds.threshold_of(is_strange=True))
    return certainty_of(named, cells.cell_types, cells.laboratories, taxonomy)
