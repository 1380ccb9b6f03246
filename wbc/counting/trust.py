"""Whether a slide's fields may be looked at in windows: some are looked at whole first, and none of their cells missed.

A first look by the pixels knows stains of red cells that are red. Where a slide's is another, and it does not see so
itself, white cells would be lost in silence: these fields tell.
"""

import logging
import math
from concurrent.futures import Executor

from wbc.counting.handover import Ingested, Scale
from wbc.counting.job import Job
from wbc.counting.scales import spread_over
from wbc.counting.worker import first_look_misses

logger = logging.getLogger(__name__)
ONE_IN = 10


def needs_whole_look(ingested: Ingested, scales: dict[int, Scale], job: Job, executor: Executor) -> bool:
    """Whether every field of a slide must be looked at whole, as windows missed a white cell in one that was tried.

    One field in ten is, at most as many as tell a scale.
    """
    if job.settings.tiles.sought != "white":
        return False
    tried = spread_over(sorted(scales), min(job.settings.look_fields, math.ceil(len(scales) / ONE_IN)))
    fields = [ingested.ready(i, scales[i].um_per_px) for i in tried]
    futures = [executor.submit(first_look_misses, field, job) for field in fields]
    missing = [field.path.name for field, future in zip(fields, futures, strict=True) if future.result()]
    if missing:
        logger.warning(
            "%s: a first look misses white cells of %s: all fields are looked at whole, which takes longer",
            ingested.slide.slide_id,
            ", ".join(missing),
        )
    return bool(missing)
