"""Soft attention by the paper's equations, and a search that looks at every region once."""

import math

import pytest
import torch
from torch import Tensor

from wbc.models.attention import LocalSearch, Looks, SearchSettings, SoftAttention, attention_weights


def test_the_weights_are_those_of_equations_1_and_2() -> None:
    """d = 4, so √d = 2: QKᵀ/√d is (0, ln 3), its softmax (1/4, 3/4), times β = 4 that is (1, 3)."""
    query, keys = torch.tensor([[2 * math.log(3), 0, 0, 0]]), torch.tensor([[[0.0, 1, 0, 0], [1, 0, 0, 0]]])
    both = attention_weights(query, keys, 4.0, torch.ones(1, 2))
    torch.testing.assert_close(both, torch.tensor([[1, math.exp(2)]]) / (1 + math.exp(2)))
    first = attention_weights(query, keys, 4.0, torch.tensor([[1.0, 0.0]]))  # logits 1 and 0
    torch.testing.assert_close(first, torch.tensor([[math.e, 1]]) / (1 + math.e))


def test_the_context_is_the_values_weighed() -> None:
    """The query is 0, so that two places weigh alike; equation 3 makes the mean of them."""
    attention = SoftAttention(2, 3)
    torch.nn.init.zeros_(attention.query.bias)
    context, alpha = attention(torch.zeros(1, 3), torch.tensor([[[1.0, 2], [3, 6]]]), torch.ones(1, 2))
    assert alpha.tolist() == [[0.5, 0.5]]
    assert context.tolist() == [[2, 4]]


def search(most_looks: int = 0, region: int = 2) -> LocalSearch:
    torch.manual_seed(0)
    return LocalSearch(4, SearchSettings(5, region, most_looks), stride=32)


def maps(height: int, width: int, n: int = 1) -> Tensor:
    return torch.rand(n, 4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width", "regions"), [(4, 4, 4), (5, 3, 6), (1, 1, 1)])
def test_every_region_is_looked_at_once_the_highest_attention_first(height: int, width: int, regions: int) -> None:
    model, features = search(), maps(height, width)
    looks = model(features)
    assert sorted(looks.order.unique().tolist()) == list(range(regions))
    places = features.flatten(2).transpose(1, 2)
    _, alpha = model.step(model.step.start(1, features), places, torch.ones(1, height * width))
    assert looks.order.flatten()[alpha.argmax()] == 0
    for look in range(regions):  # one state for all places of a look
        assert len(looks.states[looks.order == look].unique(dim=0)) == 1


def test_fewer_looks_leave_the_other_regions_unseen() -> None:
    looks = search(most_looks=3)(maps(4, 4))
    assert sorted(looks.order.unique().tolist()) == [-1, 0, 1, 2]
    assert looks.states[looks.order < 0].abs().sum() == 0


def test_a_picture_is_searched_alike_in_any_company() -> None:
    model, both = search(), maps(4, 6, n=2)
    together, alone = model(both), model(both[1:])
    assert torch.equal(together.order[1:], alone.order)
    torch.testing.assert_close(together.states[1:], alone.states)


def test_features_that_are_no_numbers_end_the_search_all_the_same() -> None:
    looks = search()(torch.full((1, 4, 4, 4), torch.nan))
    assert looks.states.isnan().any()


def test_proposals_are_local_by_their_middles() -> None:
    order = torch.tensor([[[0, -1], [1, 2]]])
    looks = Looks(torch.arange(4.0).view(1, 2, 2, 1), order, stride=32)
    boxes = torch.tensor([[0.0, 0, 20, 20], [30, 0, 50, 10], [0, 40, 10, 60], [60, 60, 90, 90]])
    assert looks.local([boxes])[0].tolist() == boxes[[0, 2, 3]].tolist()
    assert looks.states_at([boxes]).flatten().tolist() == [0, 1, 2, 3]  # beyond the map: its last place
    assert looks.local([boxes[:0]])[0].shape == (0, 4)


def test_no_gradient_comes_from_which_place_is_highest() -> None:
    features = maps(2, 2).requires_grad_()
    looks = search(region=1)(features)
    assert not looks.order.is_floating_point()
    looks.states.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{"hidden": 0}, {"region": 0}, {"most_looks": -1}])
def test_a_search_that_cannot_be_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        SearchSettings(**settings)
