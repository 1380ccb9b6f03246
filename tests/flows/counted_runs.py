"""What runs of the count-slides flow tell: to listeners, on their page, in their tables."""

import json
from typing import Any

import pandas as pd

from flows.count_slides import CountReport
from wbc.counting.slide import SlideOutcome

Tables = dict[str, pd.DataFrame]


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.fields: list[tuple[int, int]] = []
        self.done: list[SlideOutcome] = []

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        self.found.append((n_slides, n_fields))

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        self.fields.append((n_fields, n_cells))

    def slide_done(self, outcome: SlideOutcome) -> None:
        self.done.append(outcome)


def assert_equal(found: Tables, expected: Tables) -> None:
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(found[kind], table)


def statuses(report: CountReport) -> dict[str, str]:
    return {outcome.slide_id: outcome.status for outcome in report.outcomes}


def newest_page() -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

    ours = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=["count-slides"]))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_latest_artifacts(artifact_filter=ours)
    return artifact


def newest_artifact() -> list[dict[str, Any]]:
    artifact = newest_page()
    rows: list[dict[str, Any]] = json.loads(str(artifact.data))
    return rows
