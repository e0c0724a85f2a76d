"""The doctor on live servers: one in order, and two with the classic mistakes; and on real answers, changed in one place."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import ts
from tests.support import build
from tests.support.processes.worker import load_monitored

from camserve.monitoring.metrics import METRICS
from camserve.monitoring.reference import FILE
from camserve.tools.commands import doctor
from camserve.tools.commands.doctor import Addresses, examine
from camserve.tools.commands.serve import Server
from camserve.tools.console import ToolError
from camserve.tools.watching import checkup
from camserve.tools.watching.checkup import Finding


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
    Path("other.json").write_text('{"inference": {"key": "other"}, "management": {"key": "other"}}')
    capsys.readouterr()
    assert doctor.main(arguments(careless, "--token-file", "other.json")) == 2
    assert "refuses the token that was given" in capsys.readouterr().err
    Path("one").write_text(doctor._tokens(Path("key_file.json"))["inference"])
    assert "refuses the token" in one(list(examine(of(careless), doctor._tokens(Path("one")))), "management address").what
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
    assert one(findings, "/metrics has nothing of camserve's").level == "wrong"
    assert "service_envelope" in one(findings, "wrapped 1.0: its handler does not describe itself").mend


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real worker's handler says of itself."""
    service = load_monitored(build.archive(tmp_path_factory.mktemp("doctor") / "m"))
    described: dict[str, Any] = service._entry_point.__self__.describe_handle()
    return described


DECLARED = "".join(f"# HELP {metric.name} ...\n# TYPE {metric.name} {metric.kind.lower()}\n" for metric in METRICS)
"""What the metrics address lists before anything is counted: what is declared."""


def told(metadata: dict[str, Any], exported: str = DECLARED, **changed: Any) -> list[Finding]:
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
    return list(checkup.of_version("m 1.0", {**version, **changed}, exported))


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
    handler = load_monitored(directory)._entry_point.__self__

    assert f"{FILE} cannot be read" in one(told(handler.describe_handle()), "no reference").what


@pytest.mark.parametrize(
    ("exported", "compiled", "why"),
    [
        (DECLARED, False, "the archive turns it off"),
        (DECLARED, True, "a compiled model is not, unless its archive asks for it"),
        (DECLARED.replace("camserve_maps_total", "other"), False, "off in the archive, or undeclared by the server"),
        ("", False, "off in the archive, or undeclared by the server"),
    ],
)
def test_an_archive_that_is_not_monitored_is_told(metadata: dict[str, Any], exported: str, compiled: bool, why: str) -> None:
    """It may be meant; nothing else would say it."""
    found = one(told({**metadata, "monitor": None, "compiled": compiled}, exported), "nothing is monitored")

    assert (found.level, found.what.split("monitored: ")[1]) == ("advice", why)


def test_an_archive_that_measures_nothing_does_not_pass_for_one_that_is_watched(metadata: dict[str, Any]) -> None:
    """It has a reference, and `monitor: {rate: 0}`."""
    monitor = {"rate": 0.0, "interval": 15.0, "reference": {"images": 300, "classes": 3}}
    findings = told({**metadata, "monitor": monitor})

    assert one(findings, "rate is 0, so nothing is measured").level == "advice"
    assert not [finding for finding in findings if "drift is watched" in finding.what]


def exposition(model: str, measured: int, budget: int = 0, failed: int = 0) -> str:
    """What the metrics address says of a model's maps, beside those of another model and of another version."""
    lines = [DECLARED]
    for name, version, counts in (
        (model, "1.0", (measured, budget, failed)),
        (model, "2.0", (7, 7, 7)),
        ("other", "1.0", (9, 9, 9)),
    ):
        labels = f'model_name="{name}",model_version="{version}",Hostname="h",'
        lines.append(f"camserve_maps_total{{{labels}}} {counts[0]:.1f}\n")
        for reason, count in zip(("budget", "failed"), counts[1:], strict=True):
            lines.append(f'camserve_unmeasured_maps_total{{reason="{reason}",{labels}}} {count:.1f}\n')
    return "".join(lines)


@pytest.mark.parametrize(
    ("rate", "counts", "words"),
    [
        (1.0, (0,), ""),
        (0.25, (0,), ", on 25 % of the predictions"),
        (1.0, (1200,), ", on 100 % of the predictions"),
        (1.0, (30, 970), ", on 3 % of the predictions (the others would take more than their budget: 970 until now)"),
        (0.5, (30, 970), ", on 1.5 % of the predictions (the others would take more than their budget: 970 until now)"),
        (1.0, (99, 0, 1), ", on 99 % of the predictions"),
    ],
)
def test_the_share_that_is_really_measured_is_told(
    metadata: dict[str, Any], rate: float, counts: tuple[int, ...], words: str
) -> None:
    """By what the metrics address has counted of this version: where maps take passes of their own, many are skipped."""
    monitor = {"rate": rate, "interval": 15.0, "reference": {"images": 300, "classes": 3}}
    findings = told({**metadata, "monitor": monitor, "model": "a model"}, exposition("a_model", *counts))

    assert one(findings, "drift is watched").what == f"m 1.0: drift is watched, against 300 pictures{words}"
    assert not [finding for finding in findings if "could not be measured" in finding.what]


def test_measuring_that_fails_is_told(metadata: dict[str, Any]) -> None:
    """From the share on at which the alert fires."""
    monitor = {"rate": 1.0, "interval": 15.0, "reference": {"images": 300, "classes": 3}}
    findings = told({**metadata, "monitor": monitor, "model": "m"}, exposition("m", 90, 0, 10))

    assert one(findings, "10 of 100 predictions could not be measured").level == "advice"


def answering(status: int, text: str) -> doctor.Get:
    """A server that gives one answer to everything."""
    answer = requests.Response()
    answer.status_code, answer._content, answer.encoding = status, text.encode(), "utf-8"
    return lambda _: answer


NOWHERE = Addresses("http://127.0.0.1:0", "http://127.0.0.1:1", "http://127.0.0.1:2")
REFUSAL = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
"""TorchServe's own words for all three."""


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_that_is_refused_is_told_apart_from_none(status: int) -> None:
    """To give one is no advice for somebody who gave one."""
    text = REFUSAL if status == 400 else ""
    with pytest.raises(ToolError, match=r"wants a token .*: give --token-file"):
        list(doctor._examine_ping(NOWHERE, answering(status, text), False))
    with pytest.raises(ToolError, match=r"refuses the token that was given: .* expired"):
        list(doctor._examine_ping(NOWHERE, answering(status, text), True))


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
    found = doctor._models(NOWHERE, answering(*answer)("") if answer else None, token)

    assert isinstance(found, Finding)
    assert f"http://127.0.0.1:1 {what}, so the models" in found.what
    assert ("key_file.json" in found.mend) == ("token" in what)


def test_metrics_that_are_declared_in_part_are_named() -> None:
    """One that is missing is enough for a worker not to monitor."""
    text = DECLARED.replace("camserve_stage_seconds_sum", "other").replace("camserve_monitored_ratio", "another")
    _, (found,) = doctor._examine_metrics(NOWHERE, answering(200, text))

    assert found.level == "wrong"
    assert "/metrics lacks camserve_stage_seconds_sum, camserve_monitored_ratio: " in found.what
    assert "metrics_config" in found.mend
    _, (found,) = doctor._examine_metrics(NOWHERE, answering(200, DECLARED))
    assert found.level == "ok"


def test_a_page_that_is_none_of_the_servers_does_not_pass_for_its_metrics() -> None:
    """A proxy's 404 has words too."""
    text, (found,) = doctor._examine_metrics(NOWHERE, answering(404, "Not Found"))

    assert (text, found.level) == ("", "advice")
    assert "/metrics does not answer" in found.what


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


@pytest.mark.parametrize("management", ["http://h:808", "http://h:808/", "h:808", "H:808//"])
def test_the_management_address_may_end_in_a_slash_and_lack_its_scheme(management: str) -> None:
    """Its URLs have no empty part, and it gets its own token whichever way it is written."""
    addresses = Addresses.of("http://h:8080", management, "h:8082/")
    authorised = doctor._Authorised(addresses, {"inference": "i", "management": "m"})
    request = requests.Request("GET", f"{addresses.management}/models", auth=authorised).prepare()

    assert addresses.management.lower() == "http://h:808"
    assert addresses.metrics == "http://h:8082"
    assert request.headers["Authorization"] == "Bearer m"
    beside = requests.Request("GET", "http://h:8080/ping", auth=authorised).prepare()
    assert beside.headers["Authorization"] == "Bearer i"


def test_a_management_address_below_a_path_gets_its_own_token() -> None:
    """Behind a proxy; requests keeps a path's case."""
    authorised = doctor._Authorised(Addresses("http://h", "http://h/Admin", ""), {"inference": "i", "management": "m"})
    asked = [requests.Request("GET", f"http://h/{path}", auth=authorised).prepare() for path in ("ping", "Admin/models")]

    assert [each.headers["Authorization"] for each in asked] == ["Bearer i", "Bearer m"]


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
    addresses = Addresses("http://127.0.0.1:0", f"http://{host}:1", "")
    findings = list(doctor._examine_exposure(addresses, answering(*answer)("") if answer else None, False))

    assert [(finding.level, finding.mend) for finding in findings] == (
        [("wrong", "management_address=http://127.0.0.1:8081")] if who else []
    )
    assert not who or f"http://{host}:1 is not loopback: {who} models out of service" in findings[0].what


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
    findings = examine(Addresses.of("http://10.0.0.5:8080", None, None), {"inference": "i", "management": "management"})

    assert [finding.what for finding in findings if finding.level != "ok"][found:] == ["the server has no model"]


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


@pytest.mark.parametrize(("token", "found"), [(False, 1), (True, 0)])
def test_a_public_address_without_a_token_is_found(token: bool, found: int) -> None:
    """Whoever pays for the machine should know."""
    findings = list(doctor._examine_exposure(Addresses("http://8.8.8.8:1", "http://127.0.0.1:2", ""), None, token))

    assert len(findings) == found
