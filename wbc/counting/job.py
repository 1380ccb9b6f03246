"""What a count is asked to do: where it goes, with which models and taxonomy, and with which settings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from upath import UPath

from wbc.cells.detect import TileSettings
from wbc.models.registry import ModelRef
from wbc.storage.layout import Layout
from wbc.taxonomy import Taxonomy
from wbc.types import Slide


@dataclass(frozen=True, slots=True)
class CountSettings:
    """What a count's result depends on beside fields, models and taxonomy; with them it makes the `count_id`.

    `chunk_fields` is the work of one future, `look_fields` how many fields tell a slide's scale.
    """

    min_score: float = 0.7
    tiles: TileSettings = field(default_factory=TileSettings)
    chunk_fields: int = 8
    look_fields: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score {self.min_score} is not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Job:
    """One count: where it goes, with what models, how.

    `device` is auto, cpu, cuda or cuda:i, resolved on the worker.
    """

    out: UPath
    detector: ModelRef
    classifier: ModelRef | None
    taxonomy: Taxonomy
    settings: CountSettings = field(default_factory=CountSettings)
    device: str = "auto"
    force: bool = False
    verify: bool = False
    keep_pixels: bool = False

    def pixels(self, slide_id: str) -> UPath:
        """The Zarr group of a slide's pixels while it is counted."""
        return Layout(self.out).pixels(slide_id, keep=self.keep_pixels)


def count_id(slide: Slide, digests: Mapping[str, str], job: Job) -> str:
    """32 hexadecimal digits of all that a count depends on: fields, models, taxonomy, settings, given scale.

    `digests` are of the slide's fields by file name.
    """
    parts = {
        "fields": sorted(digests.items()),
        "um_per_px": slide.um_per_px,
        "detector": job.detector.sha256,
        "classifier": job.classifier.sha256 if job.classifier else None,
        **_of_all_slides(job.taxonomy, job.settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=8)
def _of_all_slides(taxonomy: Taxonomy, settings: CountSettings) -> dict[str, Any]:
    return {"taxonomy": asdict(taxonomy), "settings": asdict(settings)}
