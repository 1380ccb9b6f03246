"""Texts that are kept by code are the texts that they were made of."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wbc.storage.categorical import Categorical

some_texts = st.lists(st.sampled_from(["a.png", "b.png", "é", "\udcff", ""]), max_size=8)


@given(some_texts, some_texts, st.data())
def test_they_are_as_a_list_of_them(first: list[str], second: list[str], data: st.DataObject) -> None:
    both = Categorical.concatenate([Categorical.of(first), Categorical.of(()), Categorical.of(second)])
    texts = first + second
    assert list(both) == list(pickle.loads(pickle.dumps(both))) == texts
    assert (len(both), both.codes.dtype) == (len(texts), np.int32)
    assert {text: n for text, n in both.counts().items() if n} == {text: texts.count(text) for text in texts}
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    kept = both.take(mask)
    assert list(kept) == list(kept.used()) == [text for text, is_kept in zip(texts, mask, strict=True) if is_kept]
    assert set(kept.used().categories) == set(kept)
    for text in ("a.png", "elsewhere"):
        np.testing.assert_array_equal(both.where(text), [own == text for own in texts])


def test_one_text_many_times() -> None:
    assert list(Categorical.repeat("rbc", 3)) == ["rbc"] * 3
    assert list(Categorical.repeat("rbc", 0)) == []
