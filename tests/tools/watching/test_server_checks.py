"""Checks of a server: tokens, metrics, and who reaches its management address."""

from __future__ import annotations

import pytest
import requests
from tests.support.monitoring.checks import DECLARED, answering

from camserve.tools.console import ToolError
from camserve.tools.watching import server_checks
from camserve.tools.watching.endpoints import Endpoints
from camserve.tools.watching.finding import Finding
from camserve.tools.watching.server_checks import check_server

NOWHERE = Endpoints("http://127.0.0.1:0", "http://127.0.0.1:1", "http://127.0.0.1:2")


REFUSAL = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
"""TorchServe's own words for all three."""


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_that_is_refused_is_told_apart_from_none(status: int) -> None:
    """To give one is no advice for somebody who gave one."""
    text = REFUSAL if status == 400 else ""
    with pytest.raises(ToolError, match=r"wants a token .*: give --token-file"):
        list(server_checks._check_ping(NOWHERE, answering(status, text), False))
    with pytest.raises(ToolError, match=r"refuses the token that was given: .* expired"):
        list(server_checks._check_ping(NOWHERE, answering(status, text), True))


@pytest.mark.parametrize(
    ("answer", "token", "what"),
    [
        ((400, REFUSAL), False, "wants a token"),
        ((400, REFUSAL), True, "refuses the token"),
        (None, True, "does not answer"),
        ((404, "{}"), True, "does not answer"),
        ((200, "<html>"), False, "does not answer"),
    ],
)
def test_why_the_models_are_not_known_is_told(answer: tuple[int, str] | None, token: bool, what: str) -> None:
    """The management address has a token of its own."""
    found = server_checks._models(NOWHERE, answering(*answer)("") if answer else None, token)

    assert isinstance(found, Finding)
    assert f"http://127.0.0.1:1 {what}, so the models" in found.message
    assert ("key_file.json" in found.remedy) == ("token" in what)


def test_metrics_that_are_declared_in_part_are_named() -> None:
    """One that is missing is enough for a worker not to monitor."""
    text = DECLARED.replace("camserve_stage_seconds_sum", "other").replace("camserve_monitored_ratio", "another")
    _, (found,) = server_checks._check_metrics(NOWHERE, answering(200, text))

    assert found.level == "wrong"
    assert "/metrics lacks camserve_stage_seconds_sum, camserve_monitored_ratio: " in found.message
    assert "metrics_config" in found.remedy
    _, (found,) = server_checks._check_metrics(NOWHERE, answering(200, DECLARED))
    assert found.level == "ok"


def test_a_page_that_is_none_of_the_servers_does_not_pass_for_its_metrics() -> None:
    """A proxy's 404 has words too."""
    text, (found,) = server_checks._check_metrics(NOWHERE, answering(404, "Not Found"))

    assert (text, found.level) == ("", "advice")
    assert "/metrics does not answer" in found.message


LISTED = (200, '{"models": [{"modelName": "m", "modelUrl": "m.mar"}]}')


@pytest.mark.parametrize(
    ("host", "answer", "who"),
    [
        ("127.0.0.1", LISTED, None),
        ("localhost", LISTED, None),
        ("[::1]", LISTED, None),
        ("0.0.0.0", LISTED, None),
        ("8.8.8.8", LISTED, "whoever reaches it takes"),
        ("10.0.0.5", LISTED, "whoever reaches it takes"),
        ("10.0.0.5", (200, '{"models": []}'), "whoever reaches it takes"),
        ("10.0.0.5", (400, REFUSAL), "whoever reaches it and has its token takes"),
        ("10.0.0.5", (401, ""), None),
        ("10.0.0.5", (404, "{}"), None),
        ("10.0.0.5", (502, "<html>"), None),
        ("explain.example.com", None, None),
    ],
)
def test_a_management_address_that_others_reach_is_found(host: str, answer: tuple[int, str] | None, who: str | None) -> None:
    """Wherever TorchServe itself answers beyond loopback, as SECURITY.md has it; a token is not enough, a proxy that asks is."""
    addresses = Endpoints("http://127.0.0.1:0", f"http://{host}:1", "")
    findings = list(server_checks._check_exposure(addresses, answering(*answer)("") if answer else None, False))

    assert [(finding.level, finding.remedy) for finding in findings] == (
        [("wrong", "management_address=http://127.0.0.1:8081")] if who else []
    )
    assert not who or f"http://{host}:1 is not loopback: {who} models out of service" in findings[0].message


@pytest.mark.parametrize(("answer", "found"), [((400, REFUSAL), 1), ((401, ""), 0), (LISTED, 1)])
def test_a_management_address_is_judged_by_what_it_tells_a_stranger(
    answer: tuple[int, str], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor's own token opens it, and says nothing of who keeps others out."""

    def send(_: requests.Session, request: requests.PreparedRequest, **__: object) -> requests.Response:
        authorised = request.headers.get("Authorization") == "Bearer management"
        asked = ":8081/models?" in str(request.url)
        return answering(*((200, '{"models": []}') if authorised else answer if asked else (200, DECLARED)))("")

    monkeypatch.setattr(requests.Session, "send", send)
    findings = check_server(Endpoints.of("http://10.0.0.5:8080", None, None), {"inference": "i", "management": "management"})

    assert [finding.message for finding in findings if finding.level != "ok"][found:] == ["the server has no model"]


@pytest.mark.parametrize(("token", "found"), [(False, 1), (True, 0)])
def test_a_public_address_without_a_token_is_found(token: bool, found: int) -> None:
    """Whoever pays for the machine should know."""
    findings = list(server_checks._check_exposure(Endpoints("http://8.8.8.8:1", "http://127.0.0.1:2", ""), None, token))

    assert len(findings) == found
