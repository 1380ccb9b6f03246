"""Slides counted again from the detections that stand in OUT, for another score, taxonomy or what people say of their
cells: no model, no field.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from upath import UPath

from wbc.counting.corrected_cells import amended
from wbc.counting.handover import SlideOutcome, outcome_of
from wbc.counting.job import COUNTING_VERSION, Job, are_detections_of, new_run_id, taxonomy_digest
from wbc.counting.record import occasion_of, rules_of, with_misnaming
from wbc.counting.tally import Rules, Tally, tally
from wbc.storage.corrections import Correction, write_corrections
from wbc.storage.counts import commit, committed_count_id, read_evidence, read_slide_row, restore
from wbc.storage.detections import Evidence
from wbc.storage.layout import Layout
from wbc.storage.lock import holding
from wbc.storage.stamps import known_digests
from wbc.storage.tables import Seconds, SlideRow
from wbc.taxonomy import Taxonomy, load_taxonomy, shipped_taxonomies
from wbc.types import Slide

if TYPE_CHECKING:
    from wbc.counting.corrections_file import CorrectionsFile, Said

logger = logging.getLogger(__name__)
RULES_CHANGED = "recounted: by another score or taxonomy, or for what people said of its cells"


@dataclass(frozen=True, slots=True)
class Change:
    """What a recount changes; None leaves it as each slide was counted.

    `corrections` are added to those that stand; with `forget` all of these go.
    """

    taxonomy: Taxonomy | None = None
    min_score: float | None = None
    corrections: "CorrectionsFile | None" = None
    forget: bool = False

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score {self.min_score} is not between 0 and 1")
        if self.forget and self.corrections is not None:
            raise ValueError("corrections are to be forgotten and to be added: one of both")


def recount_slides(out: UPath, slide_ids: Sequence[str], change: Change) -> list[SlideOutcome]:
    """Count slides of an OUT again, as its one writer; a slide for which that cannot be done keeps its count.

    What a recount that was killed left torn is taken back from the history first. The outcome says why a slide could
    not be recounted. Raises ValueError, before anything is written, for a file of corrections that is wrong anywhere,
    OutInUse where another run writes there, OSError where nothing can be written.
    """
    run_id, outcomes = new_run_id(), []
    with holding(out, run_id) as hold:
        Layout(out).sweep()
        for slide_id in slide_ids if change.corrections else ():
            restore(out, slide_id)
        said = _said(out, slide_ids, change)
        for slide_id in slide_ids:
            outcomes.append(_recount(out, slide_id, change, said.get(slide_id, ()), run_id))
            hold.check()
    return outcomes


def recounted(slide: Slide, job: Job) -> SlideOutcome | None:
    """The outcome of a slide counted again from the detections that stand, for another score or taxonomy.

    None where they are not those that `job` would make, or cannot be counted so. Opens no field and runs no model.
    """
    known = None if job.force or job.verify else known_digests(job.out, slide)
    try:
        return None if known is None else recount_fitting(slide, known, job)
    except OSError as error:  # who counts it from its pixels will tell
        logger.warning("%s: not counted from its detections: %s", slide.slide_id, error)
        return None


def recount_fitting(slide: Slide, digests: Mapping[str, str], job: Job) -> SlideOutcome | None:
    """Count a slide again from the detections that stand, where they are those that `job` would make of its fields.

    `digests` are of the fields, by file name. None where they are not. Raises OSError where nothing can be written.
    """
    began = time.monotonic()
    if committed_count_id(job.out, slide.slide_id) is None:
        return None
    try:
        row, evidence = read_evidence(job.out, slide.slide_id)
    except ValueError:
        return None
    if not are_detections_of(evidence.origin.detections_id, slide, digests, job):
        return None
    result = tally(evidence, rules_of(job, evidence.origin.kinds), occasion_of(slide.source, job.run_id))
    return _commit(job.out, row, result, began, RULES_CHANGED)


def _said(out: UPath, slide_ids: Sequence[str], change: Change) -> "Mapping[str, tuple[Said, ...]]":
    """What the change's file of corrections says of the slides."""
    if change.corrections is None:
        return {}
    # Formats of annotations take seconds to import: who counts needs none.
    from wbc.counting.corrections_file import read_corrections_file

    taxonomies = [change.taxonomy or _taxonomy_of(read_slide_row(out, slide_id)) for slide_id in slide_ids]
    if any(taxonomy != taxonomies[0] for taxonomy in taxonomies):
        raise ValueError(f"{change.corrections.path}: the slides are counted by several taxonomies: name slides of one")
    reading = read_corrections_file(change.corrections, out, slide_ids, taxonomies[0])
    if reading.n_unmentioned:
        words = "%s: %d cells of its fields have no mark there, and stay: name what is no cell not_a_white_cell"
        logger.warning(words, change.corrections.path, reading.n_unmentioned)
    return reading.said


def _recount(out: UPath, slide_id: str, change: Change, said: "Sequence[Said]", run_id: str) -> SlideOutcome:
    began = time.monotonic()
    try:
        row = read_slide_row(out, slide_id)
    except ValueError as error:
        return SlideOutcome(slide_id, "failed", 0, 0, (), 0.0, str(error))
    restore(out, slide_id)
    try:
        _, evidence = read_evidence(out, slide_id)
        _check_whole(out, evidence)
        standing = evidence.corrections
        evidence = replace(evidence, corrections=() if change.forget else _amended(evidence, said, change))
        rules = with_misnaming(_rules(row, change), out, evidence.origin.kinds)
        result = tally(evidence, rules, occasion_of(row.source, run_id))
    except ValueError as error:
        return replace(outcome_of(row, "unchanged", 0.0), reason=f"not recounted: {error}; `wbc count` counts it anew")
    if evidence.corrections != standing:  # first of all: the next count counts by them, should this one be killed
        write_corrections(out, slide_id, evidence.corrections)
    return _commit(out, row, result, began, _why(change, said))


def _amended(evidence: Evidence, said: "Sequence[Said]", change: Change) -> tuple[Correction, ...]:
    """A slide's corrections with what is said now. Raises ValueError for a field that is no known picture."""
    if change.corrections is None:
        return evidence.corrections
    by, at, digests = change.corrections.by, datetime.now(UTC), {row.field: row.digest for row in evidence.fields}
    told = []
    for one in said:
        digest = digests.get(one.field)
        if digest is None:
            raise ValueError(f"nothing tells which picture {one.field} was")
        told.append(Correction(one.field, digest, one.box, one.cell_type, by, at))
    return amended(evidence.corrections, told)


def _why(change: Change, said: "Sequence[Said]") -> str:
    """Why a slide was recounted, for the history."""
    if change.corrections is not None:
        return f"recounted: {change.corrections.by} named {len(said)} cell{'' if len(said) == 1 else 's'}"
    return "recounted without corrections" if change.forget else RULES_CHANGED


def _check_whole(out: UPath, evidence: Evidence) -> None:
    """Raises ValueError where the evidence is no whole count's of this version."""
    if evidence.origin.detections_id is None or committed_count_id(out, evidence.slide_id) is None:
        raise ValueError("no whole count of it stands")
    if evidence.origin.counting_version != COUNTING_VERSION:
        raise ValueError("its detections were made by another version of the way of counting")


def _rules(row: SlideRow, change: Change) -> Rules:
    """The rules by which a slide was counted, changed as asked for."""
    min_score = row.min_score if change.min_score is None else change.min_score
    taxonomy = change.taxonomy or _taxonomy_of(row)
    if min_score is None:
        raise ValueError("its row tells no lowest score")
    return Rules(taxonomy, min_score)


def _taxonomy_of(row: SlideRow) -> Taxonomy:
    """The taxonomy that a slide was counted by; ValueError where it is none of those that come along."""
    if row.taxonomy in shipped_taxonomies():
        taxonomy = load_taxonomy(row.taxonomy)
        if taxonomy_digest(taxonomy) == row.taxonomy_digest:
            return taxonomy
    raise ValueError(f"it was counted by a taxonomy {row.taxonomy!r} that did not come along: name its file")


def _commit(out: UPath, standing: SlideRow, result: Tally, began: float, why: str) -> SlideOutcome:
    """Commit a count unless it is the one that stands."""
    if (result.row.count_id, result.row.source) == (standing.count_id, standing.source):
        return outcome_of(standing, "unchanged", time.monotonic() - began)
    seconds = time.monotonic() - began
    row = replace(result.row, seconds=Seconds(write=seconds, total=seconds))
    return outcome_of(commit(out, result.tables, row, why), "counted", time.monotonic() - began)
