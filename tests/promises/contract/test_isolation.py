"""Each request of a batch gets what it would have got alone, whatever its neighbours are: drawn at random, through the real
`ts.service.Service`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.build import PLAIN, archive, module_of
from tests.support.comparison.equality import assert_same
from tests.support.strategies import LABELS, PICTURES, encoded, rows

from camserve.capture.runtimes.engines import ENGINES, is_installed
from camserve.core.errors import KINDS
from camserve.tools.archive.archive import Response, Row, ask, handler_of, load_service

pytestmark = pytest.mark.numeric

BOUNDED = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
TELLTALE = re.compile(r"/[a-z]+/[a-z_]+|\.py\b|0x[0-9a-f]{6,}|Traceback|line \d+, in ")


@pytest.fixture(scope="module", params=["torch", *filter(is_installed, ENGINES)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small classifier with seven classes and labels that attack, in each runtime that is installed."""
    explain = {**PLAIN, "runtime": request.param}
    made = load_service(archive(tmp_path_factory.mktemp("one") / "bright", explain, classes=7, labels=LABELS))
    assert handler_of(made).face.metadata["runtime"]["name"] == request.param
    return made


def orderly(response: Response) -> None:
    """A 200, or one of the contract's errors in its own words; headers that a server can send."""
    assert all(value.isascii() and value.isprintable() for value in response.headers.values())
    if response.status != 200:
        error = json.loads(response.body)
        assert response.content_type == "application/json"
        assert list(error) == ["code", "type", "message"]
        assert error["code"] == response.status < 500
        assert error["type"] in KINDS[response.status]
        assert error["message"].isprintable()
        assert not TELLTALE.search(error["message"])


@BOUNDED
@given(batch=st.lists(rows(), min_size=2, max_size=8))
@example(batch=[Row({}, {"describe": "True"}), Row({"body": bytearray(PICTURES[0])}, {"describe": "True"}, explain=True)])
@example(batch=[Row({"body": bytearray(each)}, explain=True) for each in PICTURES])
def test_each_answer_of_a_batch_equals_the_answer_alone(service: Any, batch: list[Row]) -> None:
    """Status, body, content type and headers of good and bad requests, of either mode, in one batch."""
    together = ask(service, batch)

    assert len(together) == len(batch)
    for row, answer in zip(batch, together, strict=True):
        orderly(answer)
        assert_same(answer, ask(service, [row])[0])


@BOUNDED
@given(row=rows(), place=st.integers(0, 2))
def test_a_request_changes_no_later_answer(service: Any, row: Row, place: int) -> None:
    """The same good request before, beside and after any other gets the same answer, and nothing of the model has changed."""
    good = Row({"body": {"data": encoded(PICTURES[0]), "target": [0, 4], "method": "contrast"}}, explain=True)
    before = ask(service, [good])[0]
    batch = [good, good]
    batch.insert(place, row)

    beside = [answer for index, answer in enumerate(ask(service, batch)) if index != place]

    assert before.status == 200
    for answer in (*beside, ask(service, [good])[0]):
        assert_same(answer, before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module_of(service).parameters())
