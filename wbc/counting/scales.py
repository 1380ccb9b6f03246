"""The scale of each field of a slide: given, told by its file, or measured on the red cells of fields like it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from wbc.counting.handover import Alike, Ingested, ReadyField, Scale
from wbc.counting.job import Job
from wbc.counting.worker import look_for_scale

MIXED = 1.1  # scales that differ by more than this factor make a slide `mixed_scale`


def scales_of(ingested: Ingested, job: Job, executor: Executor) -> dict[int, Scale]:
    """The scale of each field to count, by its index; without a number where nothing told it.

    A scale that the user gave holds for all fields. Else each has the one that its own file tells, and fields without
    such have that of the red cells of some that are alike: of one size and camera.
    """
    if ingested.slide.um_per_px is not None:
        return dict.fromkeys(ingested.to_count, Scale(ingested.slide.um_per_px, "given"))
    metadata, others = _by_metadata(ingested)
    looks = {alike: _fields_to_look_at(ingested, indices, job) for alike, indices in others.items()}
    futures = {alike: executor.submit(look_for_scale, fields, job) for alike, fields in looks.items()}
    scales = dict(metadata)
    for alike, future in futures.items():
        estimate = future.result()
        like_them = [s for i, s in metadata.items() if ingested.fields[i].alike == alike]
        scale = summary(like_them) if estimate is None else Scale(estimate, "red_cells")
        scales |= dict.fromkeys(others[alike], scale)
    return dict(sorted(scales.items()))


def summary(scales: list[Scale]) -> Scale:
    """The median of the scales that are known, and where most of them came from."""
    numbers = [scale.um_per_px for scale in scales if scale.um_per_px is not None]
    if not numbers:
        return Scale(None, None)
    ((source, _),) = Counter(scale.source for scale in scales if scale.um_per_px is not None).most_common(1)
    return Scale(float(np.median(numbers)), source)


def scale_flags(scales: Mapping[int, Scale]) -> tuple[str, ...]:
    """`scale_unknown` where a field has no scale, `mixed_scale` where two differ by more than 10 %."""
    numbers = [scale.um_per_px for scale in scales.values() if scale.um_per_px is not None]
    conditions = {
        "scale_unknown": len(numbers) < len(scales),
        "mixed_scale": bool(numbers) and max(numbers) > MIXED * min(numbers),
    }
    return tuple(flag for flag, holds in conditions.items() if holds)


def _by_metadata(ingested: Ingested) -> tuple[dict[int, Scale], dict[Alike, list[int]]]:
    """The scales in the files' own metadata; and the fields without one, by what they are alike in."""
    metadata: dict[int, Scale] = {}
    others: dict[Alike, list[int]] = defaultdict(list)
    for i in ingested.to_count:
        field = ingested.fields[i]
        if field.um_per_px is not None:
            metadata[i] = Scale(field.um_per_px, "metadata")
        else:
            others[field.alike].append(i)
    return metadata, others


def _fields_to_look_at(ingested: Ingested, indices: list[int], job: Job) -> list[ReadyField]:
    """A few fields, spread evenly over those that are alike."""
    return [ingested.ready(i) for i in spread_over(indices, job.settings.look_fields)]


def spread_over(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of the indices, spread evenly over them."""
    places = np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int)
    return [indices[i] for i in sorted(set(places.tolist()))]
