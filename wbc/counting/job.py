"""What a count is asked to do: where it goes, with which models and taxonomy, and with which settings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, get_args
from uuid import uuid4

from upath import UPath

from wbc.cells.tiles import TileSettings
from wbc.engine import Engine, EngineChoice
from wbc.models.registry import ModelRef
from wbc.storage.layout import Layout
from wbc.taxonomy import Taxonomy
from wbc.types import Precision, Slide

# Raised by hand with every change of the program that can change a cell; a test over rendered slides asks for it.
COUNTING_VERSION = 8
# Every box that the detector gives from this score on is named and kept, whatever score a count asks for.
LOWEST_SCORE = 0.05
# Calls grow, up to so many fields, where a thread has so many to come: the last then ends little after the others.
# To read a field takes a tenth of the time that its cells take, so that calls which read may be larger.
CALLS_A_THREAD, MOST_FIELDS, READ_TIMES = 20, 25, 2
# A GPU is done with as many pixels in a fraction of a second.
CHUNK_PX, GPU_CHUNK_PX = 10_000_000, 40_000_000
PRECISIONS: tuple[Precision | None, ...] = (None, *get_args(Precision))
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True, slots=True)
class CountSettings:
    """What a count's result depends on beside fields, models and taxonomy: all of it is part of the `count_id`.

    `look_fields` is how many fields tell the scale of those that are alike. The tile grid is here as it leaves a trace:
    another place of it counts up to 1.5 % more or fewer red cells.
    """

    min_score: float = 0.7
    tiles: TileSettings = field(default_factory=TileSettings)
    look_fields: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score {self.min_score} is not between 0 and 1")

    @property
    def lowest_score(self) -> float:
        """The detector's score from which all boxes are kept."""
        return min(LOWEST_SCORE, self.min_score)


@dataclass(frozen=True, slots=True)
class WorkSettings:
    """How the work is cut, which changes no cell: the most fields and pixels of a call, and pixels of a forward pass.

    `chunk_px` keeps the cores alike busy to the end: a call on large fields takes seconds. `least_fields` goes before
    it: each call costs flow and scheduler some milliseconds, which very many workers make the limit. Without `batch_px`
    a forward pass has as many as suit its device.
    """

    chunk_fields: int = 8
    chunk_px: int = CHUNK_PX
    batch_px: int | None = None
    least_fields: int = 1

    def fields_at_once(self, field_px: int) -> int:
        """How many fields of so many pixels one call on the models gets."""
        return max(1, self.least_fields, min(self.chunk_fields, self.chunk_px // max(1, field_px)))

    @property
    def read_at_once(self) -> int:
        """How many fields one call reads."""
        return max(self.chunk_fields, READ_TIMES * self.least_fields)

    def for_run(self, n_fields: int, threads: int, gpus: bool = False) -> "WorkSettings":
        """The same for a run of so many fields on so many threads: larger calls, where each has many to come.

        So are calls on GPUs.
        """
        least = max(self.least_fields, min(MOST_FIELDS, n_fields // (CALLS_A_THREAD * threads)))
        chunk_px = max(self.chunk_px, GPU_CHUNK_PX) if gpus else self.chunk_px
        return replace(self, least_fields=least, chunk_fields=max(self.chunk_fields, least), chunk_px=chunk_px)


def new_run_id() -> str:
    """A name that no other run has."""
    return uuid4().hex[:12]


@dataclass(frozen=True, slots=True)
class Job:
    """One count: where it goes, with what models, how.

    `device` is auto, cpu, cuda or cuda:i, resolved on the worker, and so is `engine`. `run_id` tells the pixels of one
    run from another's.
    """

    out: UPath
    detector: ModelRef
    classifier: ModelRef | None
    taxonomy: Taxonomy
    settings: CountSettings = field(default_factory=CountSettings)
    work: WorkSettings = field(default_factory=WorkSettings)
    device: str = "auto"
    engine: EngineChoice = "auto"
    force: bool = False
    verify: bool = False
    keep_pixels: bool = False
    run_id: str = field(default_factory=new_run_id)

    def pixels_group(self, slide_id: str) -> UPath:
        """The Zarr group of a slide's pixels while it is counted."""
        return Layout(self.out).pixels_group(slide_id, None if self.keep_pixels else self.run_id)


def detections_id(
    slide: Slide, digests: Mapping[str, str], job: Job, precision: Precision | None, engine: Engine = "torch"
) -> str:
    """32 hexadecimal digits of all that can change what the models say of a slide: equal ids, equal detections.

    `digests` are of the slide's fields by file name, `precision` the number format that its models ran in (None where
    none ran), `engine` what ran the detector. Beside them: the scale given, models, tiles, the lowest score that is
    kept, and the counting version.
    """
    return _salted(_inputs(slide, digests, job), precision, engine)


def count_id(made_from: str, taxonomy: Taxonomy, min_score: float, corrections: str | None = None) -> str:
    """32 hexadecimal digits of all that can change a cell of a slide, and of nothing else: equal ids, equal counts.

    `made_from` is the id of the slide's detections, `corrections` the digest of what people said of its cells, None
    where nobody did. Beside them: taxonomy, lowest score that counts, counting version.
    """
    said = [] if corrections is None else [corrections]
    return _digest([made_from, taxonomy_digest(taxonomy), min_score, COUNTING_VERSION, *said])[:32]


def is_count_of(
    own_id: str | None, slide: Slide, digests: Mapping[str, str], job: Job, corrections: str | None = None
) -> bool:
    """Whether a `count_id` stands for these inputs, in whatever number format and by whatever engine."""
    ids = _possible_ids(slide, digests, job)
    return own_id in {count_id(made_from, job.taxonomy, job.settings.min_score, corrections) for made_from in ids}


def are_detections_of(own_id: str | None, slide: Slide, digests: Mapping[str, str], job: Job) -> bool:
    """Whether a `detections_id` stands for these inputs, in whatever number format the models ran."""
    return own_id in _possible_ids(slide, digests, job)


@lru_cache(maxsize=8)
def taxonomy_digest(taxonomy: Taxonomy) -> str:
    """64 hexadecimal digits of what a taxonomy makes of a count; its note and abbreviations are words alone."""
    return _digest(_rules(taxonomy))


def _possible_ids(slide: Slide, digests: Mapping[str, str], job: Job) -> set[str]:
    """The `detections_id` in each number format, by each engine."""
    inputs = _inputs(slide, digests, job)
    return {_salted(inputs, precision, engine) for precision in PRECISIONS for engine in ENGINES}


def _inputs(slide: Slide, digests: Mapping[str, str], job: Job) -> str:
    settings = asdict(replace(job.settings, min_score=job.settings.lowest_score))  # as a count of all that is kept
    if settings["tiles"]["sought"] == "all":
        del settings["tiles"]["sought"]  # counts from before there was a choice stand
    return _digest(
        {
            "version": COUNTING_VERSION,
            "fields": sorted(digests.items()),
            "um_per_px": slide.um_per_px,
            "detector": job.detector.digest,
            "classifier": job.classifier.digest if job.classifier else None,
            "settings": settings,
        }
    )


def _salted(inputs: str, precision: Precision | None, engine: Engine) -> str:
    return _digest([inputs, precision, engine])[:32]


def _rules(taxonomy: Taxonomy) -> dict[str, Any]:
    rules = asdict(taxonomy)
    types = [{key: value for key, value in t.items() if key != "abbreviation"} for t in rules["cell_types"]]
    return {key: value for key, value in rules.items() if key != "note"} | {"cell_types": types}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
