"""The doctor on live servers: one in order, and two with the classic mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import ts
from tests.support import build
from tests.support.monitoring.checks import DECLARED, answering, one
from tests.support.processes.waiting import HANG

from camserve.tools.commands import doctor
from camserve.tools.commands.serve import Server
from camserve.tools.console import ToolError
from camserve.tools.watching.endpoints import Endpoints
from camserve.tools.watching.server_checks import check_server


def of(server: Server) -> Endpoints:
    """The server's addresses."""
    return Endpoints(server.url, server.management_url, server.metrics_url)


def arguments(server: Server, *more: str) -> list[str]:
    """The command line that names the server's addresses, which need not lie side by side here."""
    return [server.url, "--management", server.management_url, "--metrics", server.metrics_url, *more]


@pytest.mark.live
def test_a_server_in_order_has_no_mistakes(live: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model answers; the only advice is the reference that these archives lack."""
    assert doctor.main(arguments(live)) == 0
    said = capsys.readouterr().out
    assert "efficientnet_lite0 1.0: camserve" in said
    assert "efficientnet_lite0: explains a picture" in said
    assert "exports camserve's metrics" in said
    assert "no reference, so drift is not watched" in said
    assert "scripts/reference.py --archive" in said


@pytest.mark.live
def test_the_classic_mistakes_are_found_with_their_remedies(
    careless: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens that were not known of, metrics that go to the log, a long delay, no batching; each says what to write where."""
    server, keys = careless
    monkeypatch.chdir(keys.parent)
    with pytest.raises(ToolError, match=r"wants a token .* --token-file key_file\.json"):
        list(check_server(of(server), {}))
    assert doctor.main(arguments(server)) == 2
    Path("other.json").write_text('{"inference": {"key": "other"}, "management": {"key": "other"}}')
    capsys.readouterr()
    assert doctor.main(arguments(server, "--token-file", "other.json")) == 2
    assert "refuses the token that was given" in capsys.readouterr().err
    Path("one").write_text(doctor._tokens(Path("key_file.json"))["inference"])
    assert "refuses the token" in one(list(check_server(of(server), doctor._tokens(Path("one")))), "management address").message
    assert doctor.main(arguments(server, "--token-file", "key_file.json")) == 1
    assert "mend: metrics_mode=prometheus" in capsys.readouterr().out
    findings = list(check_server(of(server), doctor._tokens(Path("key_file.json"))))

    assert (one(findings, "/metrics is empty").level, one(findings, "/metrics is empty").remedy[:23]) == (
        "wrong",
        "metrics_mode=prometheus",
    )
    assert "maxBatchDelay" in one(findings, "stock 1.0: a lone request waits 900 ms").remedy
    assert one(findings, "stock 1.0: responseTimeout is 5 s").level == "wrong"
    assert "--batch-size" in one(findings, "hostile 1.0: batchSize is 1").remedy
    assert "nvidia-smi" in one(findings, "hostile 1.0: asks for a GPU and runs on the CPU").remedy
    assert one(findings, "stock 1.0: its handler is not camserve's").level == "wrong"
    assert one(findings, "hostile: explains a picture").level == "ok"


@pytest.fixture
def wrapped(tmp_path: Path) -> Iterator[Server]:
    """A server without our metrics' declaration."""
    build.mar(tmp_path, "wrapped", settings={"batchSize": 4})
    stock = Path(ts.__file__).parent / "configs" / "metrics.yaml"
    lines = ("disable_token_authorization=true", "metrics_mode=prometheus", f"metrics_config={stock}")
    config = tmp_path / "config.properties"
    config.write_text("\n".join(lines))
    with Server(tmp_path, config=config, port=0) as server:
        yield server


@pytest.mark.live
def test_undeclared_metrics_are_found(wrapped: Server) -> None:
    """Without them a server looks healthy."""
    requests.put(f"{wrapped.url}/predictions/wrapped", data=bytes(build.encoded(build.noise())), timeout=HANG)
    findings = list(check_server(of(wrapped), {}))

    assert "metrics_config" in one(findings, "/metrics has nothing of camserve's").remedy
    assert one(findings, "/metrics has nothing of camserve's").level == "wrong"


def test_nobody_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2; a port that nobody listens on."""
    assert doctor.main(["http://127.0.0.1:9"]) == 2
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_public_server_whose_management_is_closed_has_no_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The doctor, asked from elsewhere, advises and ends well: that nobody answers there is as it should be."""

    def get(_: requests.Session, url: str, **__: object) -> requests.Response:
        if ":8081" in url:
            raise requests.ConnectionError("refused")
        return answering(200, DECLARED)(url)

    monkeypatch.setattr(requests.Session, "get", get)
    assert doctor.main(["http://explain.example.com:8080"]) == 0
    said = capsys.readouterr().out
    assert "wrong" not in said
    assert "the management address http://explain.example.com:8081 does not answer" in said
