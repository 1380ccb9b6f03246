"""A count as the flow makes it, without Prefect and Dask: one process, one thread, the library alone."""

from concurrent.futures import ThreadPoolExecutor

from wbc.counting.addresses import settle_addresses
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import recounted
from wbc.counting.remarks import CountReport, remarks_on
from wbc.counting.slide import count_slide
from wbc.counting.standing import request_of, standing_outcome, writing


def run_count(parameters: CountParameters) -> CountReport:
    """Count what needs it below `parameters.slides`, and say what became of every slide and what was passed over.

    Raises ValueError or OSError where the run as a whole is refused, as `wbc count` ends with exit status 2.
    """
    request = request_of(parameters)
    with writing(request.job) as hold, ThreadPoolExecutor(1) as executor:
        renamed = settle_addresses(request.slides, request.job, rename=parameters.rename)
        outcomes = []
        for slide in request.slides:
            outcome = standing_outcome(slide, request) or recounted(slide, request.job)
            outcomes.append(outcome or count_slide(slide, request.job, executor))
            hold.check()
    return CountReport(tuple(outcomes), remarks_on(request.survey, request.job.out, renamed))
