"""What a count is asked for, and which slides need nothing of it.

All of it is known before anything is loaded that reads pixels or runs a model, so that a run with nothing to do is over
before one with something to do has begun. Whoever counts, a flow or a command, asks here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from upath import UPath

from wbc.cells.tiles import TileSettings
from wbc.counting.annotate import Cells, is_drawn
from wbc.counting.handover import SlideOutcome, outcome_of
from wbc.counting.job import CountSettings, Job, is_count_of
from wbc.counting.parameters import CountParameters
from wbc.models import registry
from wbc.models.cards import Task
from wbc.models.engines import check_engine
from wbc.models.registry import ModelRef
from wbc.sought import Sought, left_out
from wbc.storage.corrections import applicable, corrections_digest, read_corrections
from wbc.storage.counts import committed_count_id, read_slide_row, read_source
from wbc.storage.layout import Layout
from wbc.storage.lock import Hold, holding
from wbc.storage.slides import Survey, survey
from wbc.storage.stamps import known_digests
from wbc.taxonomy import Taxonomy, check_classes, load_taxonomy
from wbc.types import Slide


@dataclass(frozen=True, slots=True)
class Request:
    """One count with all that its parameters mean now: a survey of its slides, pinned models, which cells are drawn."""

    survey: Survey
    slides: tuple[Slide, ...]
    job: Job
    drawing: Cells | None

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models that count."""
        return tuple(model for model in (self.job.detector, self.job.classifier) if model is not None)


def request_of(parameters: CountParameters) -> Request:
    """What the parameters mean now; opens no field.

    Raises ValueError or OSError where there is no such folder, no picture in it, no such model or taxonomy, or where
    OUT lies among the slides.
    """
    root, out = UPath(parameters.slides), UPath(parameters.out)
    Layout(out).check_apart(root)
    job = _job(parameters)
    surveyed = survey(root)
    slides = tuple(replace(slide, um_per_px=parameters.um_per_px) for slide in surveyed.slides)
    return Request(surveyed, slides, job, None if parameters.annotate == "none" else parameters.annotate)


@contextmanager
def writing(job: Job) -> Iterator[Hold]:
    """Within, this process is the one writer of OUT, which is swept of what dead runs left, and of its own at the end.

    Raises OutInUse where another run writes there, also where it has taken OUT over meanwhile; OSError where nothing
    can be written.
    """
    layout = Layout(job.out)
    with holding(job.out, job.run_id) as hold:
        layout.check_writable()
        layout.sweep()
        yield hold
        hold.check()
        layout.sweep()


def standing_outcome(slide: Slide, request: Request) -> SlideOutcome | None:
    """The outcome of a slide that needs nothing, None where it needs something. Opens no field."""
    job, drawing = request.job, request.drawing
    try:
        if is_counted(slide, job) and (drawing is None or is_drawn(job.out, slide, drawing)):
            return unchanged(slide, job.out)
    except (OSError, ValueError):  # tables that cannot be read are written again
        pass
    return None


def standing_outcomes(request: Request) -> tuple[SlideOutcome, ...] | None:
    """The outcomes of all slides where none needs anything; None as soon as one is known that does."""
    counted = set(Layout(request.job.out).slide_ids())
    if not counted.issuperset(slide.slide_id for slide in request.slides):  # new slides, the commonest case
        return None
    outcomes = []
    for slide in request.slides:
        outcome = standing_outcome(slide, request)
        if outcome is None:
            return None
        outcomes.append(outcome)
    return tuple(outcomes)


def is_counted(slide: Slide, job: Job) -> bool:
    """Whether the slide's committed count is the one that `job` would make, and tells its address. Opens no field."""
    if job.force or job.verify:
        return False
    return stands_unopened(slide, job) and read_source(job.out, slide.slide_id) == slide.source


def stands_unopened(slide: Slide, job: Job) -> bool:
    """Whether the slide's committed count is of these fields, models and settings. Opens no field."""
    digests_by_name = known_digests(job.out, slide)
    return digests_by_name is not None and stands(slide, digests_by_name, job)


def stands(slide: Slide, digests_by_name: Mapping[str, str], job: Job) -> bool:
    """Whether the slide's committed count is of fields with these digests, counted and corrected as `job` would.

    Raises ValueError where its corrections cannot be read.
    """
    own_id = committed_count_id(job.out, slide.slide_id)
    if own_id is None:  # a new slide's, the commonest case: its possible ids are hashes of all its digests
        return False
    said = applicable(read_corrections(job.out, slide.slide_id), digests_by_name)
    return is_count_of(own_id, slide, digests_by_name, job, corrections_digest(said))


def unchanged(slide: Slide, out: UPath, seconds: float = 0.0) -> SlideOutcome:
    """The outcome of a slide whose committed count stands: it failed then, it fails now.

    Raises FileNotFoundError where it has none.
    """
    return outcome_of(read_slide_row(out, slide.slide_id), "unchanged", seconds)


def _job(parameters: CountParameters) -> Job:
    """A count with its models pinned to the weights that they mean now."""
    taxonomy, classifier = load_taxonomy(parameters.taxonomy), parameters.classifier
    if parameters.scheduler is None and parameters.settings is None:  # other machines' workers look for themselves
        check_engine(parameters.engine)
    return Job(
        UPath(parameters.out),
        _model(parameters.detector, "detector", taxonomy, parameters.cells),
        None if classifier is None else _model(classifier, "classifier", taxonomy),
        taxonomy,
        CountSettings(parameters.min_score, TileSettings(sought=parameters.cells)),
        force=parameters.force,
        verify=parameters.verify,
        keep_pixels=parameters.keep_pixels,
        device=parameters.device,
        engine=parameters.engine,
    )


def _model(reference: str, kind: Task, taxonomy: Taxonomy, sought: Sought = "all") -> ModelRef:
    model, card = registry.resolve(reference, kind)
    check_classes(taxonomy, card.classes, reference)
    others = [name for name in card.classes if not taxonomy.cell_type(name).nucleated and name not in left_out("white")]
    if sought != "all" and others:
        raise ValueError(f"{reference} finds {', '.join(others)} beside white cells: it counts all cells or none")
    return model
