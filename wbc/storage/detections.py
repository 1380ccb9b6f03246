"""What a count is made from: all that the models said of a slide (`detections`), what became of its `fields`.

Both tables hold facts that no taxonomy and no setting of a count changes, but for `n_cells` of a field. Who made the
detections, and how, is in the file's own schema metadata, under `wbc`, as a table without a row must tell it too.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wbc.engine import Engine
from wbc.sought import Sought
from wbc.storage.categorical import Categorical
from wbc.storage.corrections import Correction
from wbc.storage.tables import SCHEMAS, FieldSeconds, arrow_text, categories, repeated, sides, texts
from wbc.types import Precision, ScaleFrom, Threshold

FieldStatus = Literal["counted", "failed", "duplicate", "not_counted"]
_ORIGIN = b"wbc"


@dataclass(frozen=True, slots=True)
class Kinds:
    """A classifier's classes, and the probability below which it is not sure of a cell.

    `reference_sha256` is of its reference cells, "" where it has none; OUT keeps them (`Layout.reference_cells`).
    A slide whose cells look farther than `limit` from those that it has learnt from is a stranger's: there it is sure
    from `stranger_threshold` on, which may be one for each name. None where the classifier does not know what is
    strange.
    """

    names: tuple[str, ...]
    threshold: float
    reference_sha256: str = ""
    stranger_threshold: Threshold | None = field(default=None, hash=False)  # a table of names has no hash
    limit: float | None = None

    def threshold_of(self, *, is_strange: bool) -> Threshold:
        """The probability below which it is not sure of a cell of a stranger's slide, or of another."""
        return self.stranger_threshold if is_strange and self.stranger_threshold is not None else self.threshold


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a slide's detections. Where no model could be asked, `detections_id` is None.

    `lowest_score` is the detector's score from which all boxes are there; `kinds` is None where no classifier ran;
    `cells` are those that were looked for; `engine` is what ran the detector, None where that was not written down.
    """

    detections_id: str | None
    detector: str
    classifier: str | None
    lowest_score: float
    counting_version: int
    precision: Precision | None = None
    kinds: Kinds | None = None
    cells: Sought = "all"
    engine: Engine | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SlideDetections:
    """Boxes of a slide, row by row: file name of the field (N,), box float32 (N,4) in field px, the detector's class
    (N,) and score float32 (N,), the classifier's probabilities float16 (N, kinds), NaN where it did not run, and how
    far the cell's look is from those that the classifier has learnt from, float32 (N,), NaN where nothing tells.
    `prints` are what a white cell is known again by in another field (`wbc.cells.prints`), "" of other boxes.
    """

    fields: Categorical
    boxes: NDArray[np.float32]
    classes: Categorical
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float16]
    distances: NDArray[np.float32]
    prints: Categorical

    def __post_init__(self) -> None:
        n = len(self.scores)
        columns = self.fields, self.classes, self.probabilities, self.distances, self.prints
        if self.boxes.shape != (n, 4) or any(len(column) != n for column in columns):
            raise ValueError(
                f"{len(self.fields)} fields, boxes {self.boxes.shape}, {len(self.classes)} classes, {n} scores, "
                f"probabilities {self.probabilities.shape}, {len(self.distances)} distances, {len(self.prints)} prints"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty(n_kinds: int = 0) -> "SlideDetections":
        """No boxes."""
        none, nowhere = np.zeros(0, np.float32), Categorical.of(())
        no_kinds = np.zeros((0, n_kinds), np.float16)
        return SlideDetections(nowhere, np.zeros((0, 4), np.float32), nowhere, none, no_kinds, none, nowhere)

    @staticmethod
    def concatenate(parts: "Sequence[SlideDetections]") -> "SlideDetections":
        """The boxes of all parts, in order; all that have any are of one classifier."""
        whole = [part for part in parts if len(part)] or [*parts[:1], SlideDetections.empty()][:1]
        return SlideDetections(
            Categorical.concatenate([part.fields for part in whole]),
            np.concatenate([part.boxes for part in whole]),
            Categorical.concatenate([part.classes for part in whole]),
            np.concatenate([part.scores for part in whole]),
            np.concatenate([part.probabilities for part in whole]),
            np.concatenate([part.distances for part in whole]),
            Categorical.concatenate([part.prints for part in whole]),
        )

    def take(self, which: NDArray[np.bool_]) -> "SlideDetections":
        """The boxes at a mask."""
        return SlideDetections(
            self.fields.take(which),
            self.boxes[which],
            self.classes.take(which),
            self.scores[which],
            self.probabilities[which],
            self.distances[which],
            self.prints.take(which),
        )


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field's row in `fields`, column by column the table's after `slide_id`.

    `digest` is the SHA-256 of its file, None where what was counted is not what the file holds, or nothing was read.
    `n_cells` is None unless it was `counted`; what is `not_counted` is a field of a slide that failed as a whole.
    `red_cell_um` is how large a typical red cell is at its scale, None where that was not seen. `unfamiliarity` is how
    far its white cells look from those that the classifier has learnt from, as in `slides`, None where it shows none.
    """

    field: str
    digest: str | None
    status: FieldStatus
    seconds: FieldSeconds
    height_px: int | None = None
    width_px: int | None = None
    um_per_px: float | None = None
    scale_from: ScaleFrom | None = None
    n_cells: int | None = None
    reason: str | None = None
    duplicate_of: str | None = None
    red_cell_um: float | None = None
    unfamiliarity: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that a slide's count is made from, beside a taxonomy and the settings of the count.

    `corrections` are what people said of its cells, also of pictures that its fields are not any more.
    """

    slide_id: str
    fields: tuple[FieldRow, ...]
    detections: SlideDetections
    origin: Origin
    corrections: tuple[Correction, ...] = ()


def detections_table(slide_id: str, detections: SlideDetections, origin: Origin) -> pa.Table:
    """The `detections` of a slide, numbered from 0 in the order given."""
    n, kinds = len(detections), origin.kinds
    is_named = np.isfinite(detections.probabilities).sum(1) > 0
    names = np.array(kinds.names if kinds else (), object)
    columns = [
        pa.repeat(slide_id, n),
        texts(detections.fields),
        np.arange(n, dtype=np.int32),
        *sides(detections.boxes),
        categories(detections.classes.used()),
        detections.scores,
        _lists(pa.array(np.tile(names, is_named.sum()), pa.string()), is_named),
        _lists(pa.array(detections.probabilities[is_named].ravel(), pa.float16()), is_named),
        repeated(origin.detections_id, n),
        pa.array(detections.distances, pa.float32(), from_pandas=True),
        _prints(detections.prints.used()),
    ]
    metadata = {_ORIGIN: json.dumps(asdict(origin)).encode()}
    return pa.table(columns, schema=SCHEMAS["detections"]).replace_schema_metadata(metadata)


def fields_table(slide_id: str, rows: Iterable[FieldRow]) -> pa.Table:
    """The `fields` of a slide."""
    rows = tuple(rows)
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in SCHEMAS["fields"].names[1:]}
    for name in ("field", "reason", "duplicate_of"):
        columns[name] = [None if text is None else arrow_text(text) for text in columns[name]]
    stages = [stage.name for stage in fields(FieldSeconds)]
    seconds = [pa.array([getattr(row.seconds, stage) for row in rows], pa.float64()) for stage in stages]
    columns["seconds"] = pa.StructArray.from_arrays(seconds, stages)
    return pa.table({"slide_id": [slide_id] * len(rows)} | columns, SCHEMAS["fields"])


def evidence_of(slide_id: str, fields_read: pa.Table, detections_read: pa.Table) -> Evidence:
    """The evidence that two tables hold. Raises ValueError where they do not."""
    try:
        origin = _origin(detections_read.schema.metadata or {})
        detections = _detections(detections_read, len(origin.kinds.names) if origin.kinds else 0)
        return Evidence(slide_id, tuple(_field_rows(fields_read)), detections, origin)
    except (KeyError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"{slide_id}: fields and detections cannot be read: {error}") from error


def _prints(prints: Categorical) -> pa.Array:
    """A column of prints, null where there is none."""
    return pa.array([text or None for text in prints.categories], pa.string()).take(pa.array(prints.codes))


def _lists(values: pa.Array, is_named: NDArray[np.bool_]) -> pa.Array:
    """`values` in lists of one length, in order, one for each row that is named; null for the others."""
    length = len(values) // max(1, is_named.sum())
    offsets = np.concatenate([[0], np.cumsum(is_named * length)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~is_named))


def _origin(metadata: dict[bytes, bytes]) -> Origin:
    facts: dict[str, Any] = json.loads(metadata[_ORIGIN])
    kinds = facts["kinds"]
    if kinds is not None:
        kinds = Kinds(**kinds | {"names": tuple(kinds["names"])})
    return Origin(**facts | {"kinds": kinds})


def _detections(table: pa.Table, n_kinds: int) -> SlideDetections:
    column = {name: table[name].combine_chunks() for name in table.column_names}
    lists = column["probabilities"]
    probabilities = np.full((len(table), n_kinds), np.nan, np.float16)
    is_named = lists.is_valid().to_numpy(zero_copy_only=False)
    probabilities[is_named] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, n_kinds or 1)
    return SlideDetections(
        _categorical(column["field"].dictionary_encode()),
        np.stack([column[side].to_numpy() for side in ("x0", "y0", "x1", "y1")], 1),
        _categorical(column["detector_class"]),
        column["score"].to_numpy(),
        probabilities,
        column["distance"].to_numpy(zero_copy_only=False),
        _read_prints(column.get("print"), len(table)),
    )


def _read_prints(column: pa.Array | None, n: int) -> Categorical:
    """The prints of n boxes; an older version wrote none."""
    return Categorical.repeat("", n) if column is None else _categorical(column.fill_null("").dictionary_encode())


def _categorical(column: pa.DictionaryArray) -> Categorical:
    return Categorical(column.indices.to_numpy(), tuple(column.dictionary.to_pylist()))


def _field_rows(table: pa.Table) -> Iterable[FieldRow]:
    names = [field.name for field in fields(FieldRow)]
    for record in table.to_pylist():
        known = {name: record[name] for name in names if name in record}  # older versions wrote fewer
        yield FieldRow(**known | {"seconds": FieldSeconds(**record["seconds"])})
