"""What is remarked on beside the counts: each kind in one line, with the first few by name."""

from upath import UPath

from wbc.counting.remarks import Remarks, gone_lines, remarks_on
from wbc.storage.gone import GoneSlide, SharedPictures
from wbc.storage.slides import PassedOver, Survey


def test_nothing_to_remark_on(out: UPath) -> None:
    remarks = remarks_on(Survey((), ()), out)
    assert remarks == Remarks()
    assert remarks.warnings() == remarks.notes() == []


def test_what_loses_pictures_is_a_warning_and_the_rest_a_note() -> None:
    passed_over = (
        PassedOver("locked/", "unreadable_folder", "Permission denied"),
        *(PassedOver(f"a{i:04d}.svs", "unread_picture") for i in range(2000)),
        PassedOver("again/", "linked_again", "is /slides/s1"),
        PassedOver("a\n\x1b[31m.txt", "other_file"),
    )
    remarks = Remarks(passed_over)
    assert remarks.warnings() == [
        "passed over: 2,000 pictures of kinds that are not read: a0000.svs, a0001.svs, a0002.svs and 1,997 more",
        "passed over: 1 folder that cannot be read: locked/ (Permission denied)",
    ]
    assert remarks.notes() == [
        "passed over: 1 folder that is there already: again/ (is /slides/s1)",
        r"passed over: 1 file that is no picture by its name: a\n\x1b[31m.txt",
    ]


def test_slides_that_have_gone_and_those_that_nobody_knows_of() -> None:
    lost, unknown = gone_lines([GoneSlide("a", "/slides/a"), GoneSlide("old", None)])
    assert lost == "in OUT, but not there any more: a (/slides/a); `wbc prune` moves their counts to the history"
    assert unknown.startswith("in OUT from an older version, and not among these slides: old; ")


def test_pictures_counted_twice_and_what_was_renamed_are_warnings() -> None:
    shared = tuple(SharedPictures(("a", f"b{i}"), 1 + i) for i in range(4))
    assert Remarks(shared=shared, renamed=("'s1' was '/a' and is '/b' now",)).warnings() == [
        "renamed: 's1' was '/a' and is '/b' now; an earlier count of other pictures is in the history",
        "1 picture counted in a and again in b0",
        "2 pictures counted in a and again in b1",
        "3 pictures counted in a and again in b2",
        "1 more pair of slides like these",
    ]
