"""Logits beside their probabilities, where those are 0 and 1 on all trial pictures: which function it was is told all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from tests.capture.survey.test_relations import CLASSES, Give, Net, opened, probabilities, scores
from tests.support.models import heads, nets
from torch import Tensor

from camserve.capture.survey import relations
from camserve.core.errors import ConfigError

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": lambda z: z.softmax(1)}


def sigmoid_by_hand(z: Tensor) -> Tensor:
    """Autograd has no name for it."""
    return 1 / (1 + torch.exp(-z))


def enlarge(z: Tensor, by: float) -> Tensor:
    """Make one class score large and positive and the others large and negative, in each picture."""
    return z + by * (2 * torch.eye(CLASSES)[3] - 1)


def give(by: float, squash: Callable[[Tensor], Tensor]) -> Give:
    """Large logits, and their probabilities."""
    return lambda z: (enlarge(z, by), squash(enlarge(z, by)))


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["eager", "trace", "exported"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_served_of_large_logits(function: str, kind: str) -> None:
    """Of labels the probabilities, of classes the logits."""
    net = Net(give(40, FUNCTIONS[function])).eval()
    made = opened(nets.stored(net, kind, heads.pictures()), layers=[heads.LAYER])
    assert (made.reader.kind, made.reader.path) == (function, (1 if function == "sigmoid" else 0,))
    assert torch.allclose(probabilities(made), FUNCTIONS[function](enlarge(scores(net), 40)), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("by", "wanted"), [(2, FUNCTIONS), (40, FUNCTIONS), (400, ("either", "either"))])
def test_what_is_next_to_0_tells(by: float, wanted: Iterable[str]) -> None:
    """In shares of itself; of logits so large that nothing is, nothing tells."""
    logits = enlarge(torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0)), by)
    assert [relations.find_squash(logits, each(logits)) for each in FUNCTIONS.values()] == list(wanted)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_where_nothing_is_next_to_0_autograd_tells(function: str) -> None:
    """By the name of the function."""
    assert opened(Net(give(400, FUNCTIONS[function])).eval(), layers=[heads.LAYER]).reader.kind == function


def test_where_nothing_tells_the_user_is_asked() -> None:
    """Of a sigmoid by hand."""
    net = Net(give(400, sigmoid_by_hand)).eval()
    with pytest.raises(ConfigError, match=r"1 is the softmax of 0, or its sigmoid, which are the same .* --output 1 serves"):
        opened(net, layers=[heads.LAYER])
