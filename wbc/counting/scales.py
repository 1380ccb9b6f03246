"""The scale of each field of a slide: given, told by its file, or measured on the red cells of fields like it; and
whether the red cells bear it out.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from wbc.counting.handover import Alike, Ingested, ReadyField, Scale
from wbc.counting.job import Job
from wbc.counting.worker import look_for_red_cells, look_for_scale
from wbc.types import WHOLE_RED_CELL_UM

MIXED = 1.1  # scales that differ by more than this factor make a slide `mixed_scale`
# Typical red cells smaller or larger by more than this factor make it `scale_doubtful`. People's own differ by less:
# microcytes and macrocytes begin at 0.83 and 1.25 of a normal one. A field by itself may show a few odd cells, but of
# the fields of one scale no more than one in ten: some may be of another objective.
DOUBTFUL, MOST_DOUBTFUL = 1.25, 0.1


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


def red_cells_um(
    ingested: Ingested, scales: Mapping[int, Scale], seen: Mapping[int, float], job: Job, executor: Executor
) -> dict[int, float]:
    """How large a typical red cell is, in µm, at the scales of a slide's fields, by their indices: `seen`, and more.

    Where scales were told, and nothing was seen of red cells at them, as in windows over white cells, fields are looked
    at for that until one shows them, a few at most.
    """
    told = {i: s.um_per_px for i, s in scales.items() if s.source in ("given", "metadata")}
    if told.keys().isdisjoint(seen):
        for i in spread_over(sorted(told), job.settings.look_fields):
            size = executor.submit(look_for_red_cells, ingested.ready(i, told[i]), job).result()
            if size is not None:
                return {**seen, i: size}
    return dict(seen)


def scale_flags(scales: Mapping[int, Scale], red_cells: Mapping[int, float]) -> tuple[str, ...]:
    """`scale_unknown` where a field has no scale, `mixed_scale` where two differ by more than 10 %, `scale_doubtful`
    where in more than a tenth of the fields of one scale red cells, µm by the fields' indices, are not of their size.
    """
    numbers = [scale.um_per_px for scale in scales.values() if scale.um_per_px is not None]
    sizes = defaultdict(list)
    for i, size in red_cells.items():
        if scales[i].um_per_px is not None:
            sizes[scales[i].um_per_px].append(size)
    conditions = {
        "scale_unknown": len(numbers) < len(scales),
        "mixed_scale": bool(numbers) and max(numbers) > MIXED * min(numbers),
        "scale_doubtful": any(map(_is_doubtful, sizes.values())),
    }
    return tuple(flag for flag, holds in conditions.items() if holds)


def _is_doubtful(sizes_um: Sequence[float]) -> bool:
    parts = np.array(sizes_um) / WHOLE_RED_CELL_UM
    return bool(((parts < 1 / DOUBTFUL) | (parts > DOUBTFUL)).mean() > MOST_DOUBTFUL)


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
