"""A slide's count as a function of its evidence: of what the models said and became of its fields, of taxonomy and
score. It opens no file and runs no model, so that a count from pixels and a recount are one and the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wbc import __version__
from wbc.cells.certainty import Certainty
from wbc.cells.naming import name_cells, names_given
from wbc.counting.corrected_cells import place, review
from wbc.counting.familiarity import Familiarity, familiarity
from wbc.counting.handover import Scale
from wbc.counting.job import COUNTING_VERSION, count_id, taxonomy_digest
from wbc.counting.left_out import other_sightings
from wbc.counting.scales import scale_flags, summary
from wbc.differential import differential_of, not_looked_for, told_alone
from wbc.misnaming import corrected
from wbc.sought import left_out
from wbc.storage.corrections import corrections_digest
from wbc.storage.detections import Evidence, FieldRow, Kinds, SlideDetections, detections_table, fields_table
from wbc.storage.layout import TableName
from wbc.storage.tables import DuplicateField, FailedField, Seconds, SlideRow, cells_table, differentials_table
from wbc.taxonomy import GENERIC, Taxonomy
from wbc.types import CellNames, Differential
from wbc.unfolding import Confusion


@dataclass(frozen=True, slots=True)
class Rules:
    """How the cells of a slide are counted, once the models have spoken.

    Where it is known, how these misname, on slides of the laboratories they know and on a stranger's, and how often
    their names are right there.
    """

    taxonomy: Taxonomy
    min_score: float
    confusion: Confusion | None = None
    stranger_confusion: Confusion | None = None
    stranger_certainty: Certainty | None = None


@dataclass(frozen=True, slots=True)
class Occasion:
    """When a count was made, by which run, where its slide lay, and where the time went: no part of its result."""

    run_id: str
    counted_at: datetime
    seconds: Seconds
    source: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """A slide's count, ready to commit: its row, and its other tables by name."""

    row: SlideRow
    tables: Mapping[TableName, pa.Table]


def tally(evidence: Evidence, rules: Rules, occasion: Occasion) -> Tally:
    """The count of a slide: its boxes with at least `min_score`, named and counted by the taxonomy.

    What people said of cells stands in the place of what the models said. Raises ValueError where the taxonomy does not
    know a class or a person's name, or boxes of such a score were not kept.
    """
    if rules.min_score < evidence.origin.lowest_score:
        raise ValueError(
            f"cells with a score from {rules.min_score:g} on are asked for, and none below "
            f"{evidence.origin.lowest_score:g} were kept"
        )
    slide_id, found = evidence.slide_id, evidence.detections
    counts = found.scores >= rules.min_score
    again = other_sightings(found, counts)
    counts &= ~again
    placed = place(evidence.corrections, evidence.fields, found, counts)
    counts[list(placed.found)] = True  # what a person named is a cell, whatever its score
    machine = found.take(counts)
    looks = familiarity(machine, evidence.origin.kinds)
    told = _names(machine, evidence.origin.kinds, rules, looks.strange)
    reviewed = review(machine, np.flatnonzero(counts), told, placed, rules.taxonomy)
    cells, names = reviewed.cells, reviewed.names
    fields = _counted(evidence.fields, cells, looks.fields)
    result = differential_of(list(names.types), rules.taxonomy, sum(row.status == "failed" for row in fields))
    result = not_looked_for(result, left_out(evidence.origin.cells), rules.taxonomy)
    told_by = _names_given(evidence, looks, rules.taxonomy)
    if told_by is not None and not _are_all_reviewed(names, reviewed.is_known, rules.taxonomy):
        result = told_alone(result, told_by, rules.taxonomy)
    confusion = rules.stranger_confusion if looks.is_strange else rules.confusion
    if confusion is not None and not looks.is_partly_strange:  # nobody has measured how such a mixture is misnamed
        own_fields = cells.fields.codes.tolist()
        result = corrected(result, list(names.types), own_fields, confusion, rules.taxonomy, reviewed.is_known)
    tables: dict[TableName, pa.Table] = {
        "cells": cells_table(slide_id, cells.fields, cells.boxes, cells.scores, names, reviewed.reviews),
        "differentials": differentials_table(slide_id, result),
        "fields": fields_table(slide_id, fields),
        "detections": detections_table(slide_id, found, evidence.origin),
    }
    row = _row(replace(evidence, fields=fields, corrections=placed.given), rules, result, occasion)
    n_again, n_corrected = int((again & ~counts).sum()), sum(r is not None for r in reviewed.reviews)
    raised = {
        "unfamiliar": looks.is_strange,
        "unfamiliar_fields": looks.is_partly_strange,
        "fields_overlap": n_again > 0,
    }
    flags = (*row.flags, *(flag for flag, is_raised in raised.items() if is_raised))
    told_row = replace(row, unfamiliarity=looks.slide, flags=flags, n_corrected=n_corrected, n_seen_again=n_again)
    return Tally(told_row, tables)


def _names(cells: SlideDetections, kinds: Kinds | None, rules: Rules, strange: NDArray[np.bool_]) -> CellNames:
    """What each box is called: by the classifier where the detector knows it for a white cell and no more.

    Those that are `strange` (N,) have a name only where a stranger's cells would.
    """
    taxonomy = rules.taxonomy
    classes = cells.classes.used()
    own = np.array([taxonomy.resolve(name) for name in classes.categories], object)
    names = CellNames.of_types(own[classes.codes])
    white = np.flatnonzero(classes.where(GENERIC))
    for is_strange in (False, True):
        these = white[strange[white] == is_strange]
        if kinds is None or not len(these):
            continue
        threshold = kinds.threshold_of(is_strange=is_strange)
        told = name_cells(cells.probabilities[these], kinds.names, taxonomy, threshold)
        if is_strange and rules.stranger_certainty is not None:
            told = rules.stranger_certainty.of(told)
        names.types[these], names.scores[these] = told.types, told.scores
        names.second_types[these], names.second_scores[these] = told.second_types, told.second_scores
    return names


def _names_given(evidence: Evidence, looks: Familiarity, taxonomy: Taxonomy) -> set[str] | None:
    """What the models could call a cell; None where the detector names kinds itself, and nothing says which."""
    classes, kinds = evidence.detections.classes.used().categories, evidence.origin.kinds
    if kinds is None:
        return {taxonomy.resolve(name) for name in classes} if GENERIC in classes else None
    given = names_given(kinds.names, taxonomy, kinds.threshold_of(is_strange=looks.is_strange))
    return given | {taxonomy.resolve(name) for name in classes}


def _are_all_reviewed(names: CellNames, is_known: NDArray[np.bool_], taxonomy: Taxonomy) -> bool:
    """Whether people named all nucleated cells: then they looked for all types."""
    if not is_known.any():
        return False
    return not any(taxonomy.cell_type(name).nucleated for name in set(names.types[~is_known]))


def _counted(
    fields: Sequence[FieldRow], cells: SlideDetections, unfamiliarity: Mapping[str, float]
) -> tuple[FieldRow, ...]:
    """The fields with their numbers of cells, None of those that were not counted, and how unfamiliar each looks."""
    n_cells = cells.fields.counts()
    return tuple(
        replace(
            row,
            n_cells=n_cells.get(row.field, 0) if row.status == "counted" else None,
            unfamiliarity=unfamiliarity.get(row.field),
        )
        for row in fields
    )


def _row(evidence: Evidence, rules: Rules, result: Differential, occasion: Occasion) -> SlideRow:
    fields, origin = evidence.fields, evidence.origin
    failed = tuple(FailedField(row.field, row.reason or "") for row in fields if row.status == "failed")
    duplicates = tuple(DuplicateField(row.field, row.duplicate_of) for row in fields if row.duplicate_of is not None)
    scales = {i: Scale(row.um_per_px, row.scale_from) for i, row in enumerate(fields) if row.status == "counted"}
    scale, reason = summary(list(scales.values())), _reason(fields)
    red_cells = {i: size for i in scales if (size := fields[i].red_cell_um) is not None}
    is_failed, is_double = ("slide_failed",) * (reason is not None), ("duplicate_fields",) * bool(duplicates)
    made_from, said = origin.detections_id, corrections_digest(evidence.corrections)
    return SlideRow(
        slide_id=evidence.slide_id,
        count_id=None if made_from is None else count_id(made_from, rules.taxonomy, rules.min_score, said),
        counted_at=occasion.counted_at,
        n_fields=len(fields),
        n_fields_failed=len(failed),
        failed_fields=failed,
        n_cells=result.n_cells,
        n_differential=result.n_differential,
        n_unidentified=result.n_unidentified,
        um_per_px=scale.um_per_px,
        scale_from=scale.source,
        me_ratio=result.me_ratio,
        me_low=result.me_low,
        me_high=result.me_high,
        nrbc_per_100_wbc=result.nrbc_per_100_wbc,
        flags=(*result.flags, *is_failed, *scale_flags(scales, red_cells), *is_double),
        detector=origin.detector,
        classifier=origin.classifier,
        taxonomy=rules.taxonomy.name,
        wbc_version=__version__,
        seconds=occasion.seconds,
        min_score=rules.min_score,
        taxonomy_digest=taxonomy_digest(rules.taxonomy),
        counting_version=COUNTING_VERSION,
        precision=origin.precision,
        reason=reason,
        duplicate_fields=duplicates,
        source=occasion.source,
        run_id=occasion.run_id,
        cells=origin.cells,
        corrections_digest=said,
        engine=origin.engine,
        red_cell_um=float(np.median([*red_cells.values()])) if red_cells else None,
    )


def _reason(fields: Sequence[FieldRow]) -> str | None:
    """Why the slide failed as a whole: it has no field, or none that could be counted. None where it did not."""
    if not fields:
        return "the folder holds no image"
    if any(row.status == "counted" for row in fields):
        return None
    first = next((row for row in fields if row.status == "failed"), None)
    if first is None:
        return "no field was counted"
    return f"no field could be counted; the first, {first.field}: {first.reason}"
