"""What one step hands to the next: that it arrives whole, and is pickled once a call and not field by field."""

import pickle
import sys
from typing import Any

from upath import UPath

from wbc.counting.handover import Ingested, IngestedField, ModelSeconds
from wbc.storage.pixels import StoredPixels
from wbc.storage.stamps import FieldStamp
from wbc.types import FieldPaths, Slide

N_FIELDS = 100


def ingested() -> Ingested:
    names = [f"field-{i:03d}.jpg" for i in range(N_FIELDS)]
    fields = [IngestedField(FieldStamp(name, 10, "0"), "ab" * 32, StoredPixels(1, 2, name)) for name in names]
    return Ingested(Slide("s1", FieldPaths(UPath("/slides/s1"), names)), tuple(fields), False, 1.0)


def test_fields_to_count_are_those_of_the_slide_in_a_tuple_too() -> None:
    slide = ingested().slide
    whole = Slide("s1", tuple(slide.field_paths))
    for of in (slide, whole):
        ready = Ingested(of, ingested().fields, False, 1.0).ready(7, 0.1, is_whole=True)
        assert (ready.path, ready.key.field, ready.um_per_px, ready.is_whole) == (whole.field_paths[7], 7, 0.1, True)


def test_to_pickle_a_hundred_fields_takes_no_python_for_each() -> None:
    read = ingested()
    ready = tuple(read.ready(i, 0.1) for i in range(N_FIELDS))
    seconds = tuple(ModelSeconds(i, 1.0, 2.0) for i in range(N_FIELDS))
    for sent in (read.fields, ready, seconds):
        calls: list[str] = []

        def note(frame: Any, event: str, _: Any, calls: list[str] = calls) -> None:
            if event == "call":
                calls.append(frame.f_code.co_name)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            got = pickle.loads(pickle.dumps(sent))
        finally:
            sys.setprofile(before)
        assert got == sent
        assert len(calls) < N_FIELDS, set(calls)
