"""The doctor on live servers: one in order, and two with the classic mistakes; and on real answers, changed in one place."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import ts
from tests import build
from tests.worker import monitored

from camserve.reference import FILE
from camserve.tools import checkup, doctor
from camserve.tools.checkup import Finding
from camserve.tools.console import ToolError
from camserve.tools.doctor import Addresses, examine
from camserve.tools.serve import Server


def of(server: Server) -> Addresses:
    """The server's addresses."""
    return Addresses(server.url, server.management_url, server.metrics_url)


def arguments(server: Server, *more: str) -> list[str]:
    """The command line that names the server's addresses, which need not lie side by side here."""
    return [server.url, "--management", server.management_url, "--metrics", server.metrics_url, *more]


def one(findings: list[Finding], words: str) -> Finding:
    """The only finding that says this."""
    (found,) = [finding for finding in findings if words in finding.what]
    return found


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


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that wants tokens and whose metrics go to the log, with a model for each mistake."""
    patient = {"batchSize": 4, "maxBatchDelay": 10}
    build.mar(tmp_path, "slow", settings={"batchSize": 4, "maxBatchDelay": 900, "responseTimeout": 5})
    build.mar(tmp_path, "single")
    build.mar(tmp_path, "gpu", settings={**patient, "deviceType": "gpu"})
    build.mar(tmp_path, "stock", handler="stock", settings=patient)
    config = tmp_path / "config.properties"
    config.write_text("metrics_mode=log\n")
    monkeypatch.chdir(tmp_path)  # where TorchServe writes its key_file.json
    with Server(tmp_path, config=config, port=0) as server:
        yield server


@pytest.mark.live
def test_the_classic_mistakes_are_found_with_their_remedies(careless: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens that were not known of, metrics that go to the log, a long delay, no batching; each says what to write where."""
    with pytest.raises(ToolError, match=r"wants a token .* --token-file key_file\.json"):
        list(examine(of(careless), {}))
    assert doctor.main(arguments(careless)) == 2
    assert doctor.main(arguments(careless, "--token-file", "key_file.json")) == 1
    assert "mend: metrics_mode=prometheus" in capsys.readouterr().out
    findings = list(examine(of(careless), doctor._tokens(Path("key_file.json"))))

    assert (one(findings, "/metrics is empty").level, one(findings, "/metrics is empty").mend[:23]) == (
        "wrong",
        "metrics_mode=prometheus",
    )
    assert "maxBatchDelay" in one(findings, "slow 1.0: a lone request waits 900 ms").mend
    assert one(findings, "slow 1.0: responseTimeout is 5 s").level == "wrong"
    assert "--batch-size" in one(findings, "single 1.0: batchSize is 1").mend
    assert "nvidia-smi" in one(findings, "gpu 1.0: asks for a GPU and runs on the CPU").mend
    assert one(findings, "stock 1.0: its handler is not camserve's").level == "wrong"
    assert one(findings, "gpu: explains a picture").level == "ok"


@pytest.fixture
def wrapped(tmp_path: Path) -> Iterator[Server]:
    """A server with an envelope around its handlers, and without our metrics' declaration."""
    build.mar(tmp_path, "wrapped", settings={"batchSize": 4})
    stock = Path(ts.__file__).parent / "configs" / "metrics.yaml"
    lines = ("disable_token_authorization=true", "metrics_mode=prometheus", f"metrics_config={stock}", "service_envelope=kserve")
    config = tmp_path / "config.properties"
    config.write_text("\n".join(lines))
    with Server(tmp_path, config=config, port=0) as server:
        yield server


@pytest.mark.live
def test_an_envelope_and_undeclared_metrics_are_found(wrapped: Server) -> None:
    """Both let a server look healthy."""
    requests.put(f"{wrapped.url}/predictions/wrapped", data=bytes(build.encoded(build.noise())), timeout=60)
    findings = list(examine(of(wrapped), {}))

    assert "metrics_config" in one(findings, "/metrics has nothing of camserve's").mend
    assert "service_envelope" in one(findings, "wrapped 1.0: its handler does not describe itself").mend


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real worker's handler says of itself."""
    service = monitored(build.archive(tmp_path_factory.mktemp("doctor") / "m"))
    described: dict[str, Any] = service._entry_point.__self__.describe_handle()
    return described


def told(metadata: dict[str, Any], **changed: Any) -> list[Finding]:
    """The findings on a version as the management address describes it, with some values changed."""
    version = {
        "modelVersion": "1.0",
        "minWorkers": 1,
        "batchSize": 8,
        "maxBatchDelay": 10,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "clientTimeoutInMills": 0,
        "deviceType": "cpu",
        "workers": [{"status": "READY", "gpu": False}],
        "customizedMetadata": metadata,
    }
    return list(checkup.of_version("m 1.0", {**version, **changed}, "camserve_"))


def test_a_version_in_order_has_only_the_advice_on_the_reference(metadata: dict[str, Any]) -> None:
    """So that what the others find is due to what they change."""
    assert [finding.what for finding in told(metadata) if finding.level != "ok"] == [
        f"m 1.0: no reference, so drift is not watched: the archive holds no {FILE}; scripts/reference.py makes one"
    ]


@pytest.mark.parametrize(
    ("changed", "words", "level"),
    [
        ({"clientTimeoutInMills": 500}, "clientTimeoutInMills is set", "wrong"),
        ({"startupTimeout": 5}, "startupTimeout is 5 s", "wrong"),
        ({"workers": [{"status": "UNLOADED"}]}, "0 of 1 workers are ready", "wrong"),
    ],
)
def test_what_the_management_address_tells_is_read(
    metadata: dict[str, Any], changed: dict[str, Any], words: str, level: str
) -> None:
    """Timeouts that leave requests unanswered or end busy workers, and workers that are missing."""
    assert one(told(metadata, **changed), words).level == level


@pytest.mark.parametrize(("ahead", "found"), [(-3600, True), (3600, True), (5, False)])
def test_a_clock_that_is_wrong_is_found(metadata: dict[str, Any], ahead: float, found: bool) -> None:
    """Ahead or behind; tokens expire by it. Some seconds are nothing."""
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=ahead)
    findings = told({**metadata, "time": then.isoformat(timespec="seconds")})

    assert any("worker's clock" in finding.what for finding in findings) is found


def test_a_gpu_that_torch_does_not_see_is_found(metadata: dict[str, Any]) -> None:
    """TorchServe gives the worker a GPU, and a torch built for the CPU runs beside it without a word."""
    findings = told(metadata, deviceType="gpu", workers=[{"status": "READY", "gpu": True}])

    assert "CUDA" in one(findings, "has a GPU and runs on the CPU").mend


def test_a_reference_of_other_weights_is_told(tmp_path: Path) -> None:
    """The worker runs without bins, and its metadata say why."""
    directory = build.archive(tmp_path / "stale")
    (directory / FILE).write_text("{}")
    handler = monitored(directory)._entry_point.__self__

    assert f"{FILE} cannot be read" in one(told(handler.describe_handle()), "no reference").what


def test_an_archive_that_is_not_monitored_is_told(metadata: dict[str, Any]) -> None:
    """It may be meant; nothing else would say it."""
    assert "the archive turns it off" in one(told({**metadata, "monitor": None}), "nothing is monitored").what


def test_nobody_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2; a port that nobody listens on."""
    assert doctor.main(["http://127.0.0.1:9"]) == 2
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:9000", Addresses("http://127.0.0.1:9000", "http://127.0.0.1:9001", "http://127.0.0.1:9002")),
        ("models.example", Addresses("http://models.example:80", "http://models.example:81", "http://models.example:82")),
        ("https://[::1]:8443/x", Addresses("https://[::1]:8443", "https://[::1]:8444", "https://[::1]:8445")),
    ],
)
def test_the_other_addresses_follow_torchserves_habit(url: str, wanted: Addresses) -> None:
    """Management one port above, metrics two."""
    assert Addresses.of(url, None, None) == wanted


@pytest.mark.parametrize(
    ("management", "token", "level"),
    [("http://127.0.0.1:1", False, None), ("http://10.1.2.3:1", False, None), ("http://8.8.8.8:1", False, "wrong")],
)
def test_a_management_address_that_all_can_reach_is_found(management: str, token: bool, level: str | None) -> None:
    """Loopback and private networks are nobody's business."""
    findings = list(doctor._examine_exposure(Addresses("http://127.0.0.1:0", management, ""), token))

    assert [finding.level for finding in findings] == ([level] if level else [])


@pytest.mark.parametrize(("token", "found"), [(False, 1), (True, 0)])
def test_a_public_address_without_a_token_is_found(token: bool, found: int) -> None:
    """Whoever pays for the machine should know."""
    findings = list(doctor._examine_exposure(Addresses("http://8.8.8.8:1", "http://127.0.0.1:2", ""), token))

    assert len(findings) == found
