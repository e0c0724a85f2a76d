"""Layer and method chosen by measuring on pictures: what the archive holds and says of it."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.test_openapi import check_schema
from tests.support import build
from tests.support.build import encoded, noise
from tests.support.models.measured import MADE, measured_archive
from tests.support.models.tiny import package_model, write_model
from tests.support.processes.fork_server import ForkServer

from camserve.core.messages import Call
from camserve.pipeline.metadata import MEASURED, read_choice
from camserve.pipeline.model import Model
from camserve.tools.archive.archive import handler_of, load_service, open_archive
from camserve.tools.client.answers import find_fault
from camserve.tools.client.result import read_result
from camserve.tools.packaging.contents.measured import write_keys
from camserve.tools.reports.inspection.page import PAGE


def test_an_archive_is_packaged_by_what_was_measured(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best layer and method are its defaults, the report travels with it, and the metadata show it without the others' rows."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(4):
        (pictures / f"{seed}.png").write_bytes(encoded(noise(64, 64, seed)))
    fork_server.replace_fresh(monkeypatch)

    archive, text = package_model([*write_model(tmp_path), "--choose-by", str(pictures)])

    assert "Layer and method by measurement on 4 pictures" in text
    with open_archive(archive) as opened:
        written = (opened.directory / MEASURED).read_bytes()
        report = json.loads((opened.directory / MEASURED).read_text())
        assert (opened.directory / PAGE).read_text().startswith("<!doctype html>")
        explain = opened.config["explain"]
        assert (explain["layers"][0], explain["method"]) == (report["best"]["layer"], report["best"]["method"])
        assert len({row["method"] for row in report["rows"]}) == 6
        described = handler_of(load_service(opened.directory)).describe_handle()
    choice = described["choice"]
    assert (choice["layer"], choice["method"], choice["pictures"]) == (described["layer"], described["method"], 4)
    assert choice["figures"]["gain"]["low"] <= choice["figures"]["gain"]["mean"] <= choice["figures"]["gain"]["high"]
    assert (choice["compared"], "rows" in choice) == (len(report["rows"]), False)
    assert (choice["weights"], choice["mismatch"]) == (described["weights"], None)
    assert choice["report"] == f"sha256:{hashlib.sha256(written).hexdigest()}"
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures.iterdir())
    assert sorted(each["sha256"] for each in report["measured_on"]) == digests
    assert (
        choice["pictures_digest"]
        == f"sha256:{hashlib.sha256(''.join(f'{each}{chr(10)}' for each in digests).encode()).hexdigest()}"
    )
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(choice["made"])
    assert 0 <= age.total_seconds() < 600


@pytest.mark.parametrize(
    ("best", "served", "layers"),
    [
        (("features", "contrast"), (), ["features"]),
        (("layer3", "hirescam"), ("layer4", "layer3"), ["layer3", "layer4"]),
        (("layer2,layer3,layer4", "refinecam"), ("layer3",), ["layer4", "layer2", "layer3"]),
    ],
)
def test_the_best_becomes_the_archives_keys(best: tuple[str, str], served: tuple[str, ...], layers: list[str]) -> None:
    """Of several layers the last one that runs comes first, and none comes twice."""
    assert write_keys({"layer": best[0], "method": best[1]}, served) == {"layers": layers, "method": best[1]}


def test_an_answer_with_a_check_says_what_was_measured(tmp_path: Path) -> None:
    """Of its own layer and method, whether these were chosen, and by which report; without a check it is as ever."""
    directory = measured_archive(tmp_path / "measured")
    model = Model.from_archive(directory)
    report = f"sha256:{hashlib.sha256((directory / MEASURED).read_bytes()).hexdigest()}"

    def ask(**options: str) -> Any:
        reply = model.run([Call(True, {}, {"data": bytes(encoded(noise(64, 64))), "method": "gradcam", **options})])[0]
        told = json.loads(reply.body)
        check_schema(told, {"$ref": "#/components/schemas/Answer"}, model.openapi)
        return told

    told = ask(check="true")
    assert told["measured"] == {
        "chosen": True,
        "out": False,
        "pictures": 5,
        "score": {"mean": 0.4, "low": 0.4, "high": 0.4},
        "support": {"mean": 0.3, "low": 0.3, "high": 0.3},
        "made": MADE,
        "report": report[:19],
    }
    other = ask(check="true", method="gradcam++")["measured"]
    assert (other["chosen"], other["out"], other["support"]["mean"]) == (False, True, -0.2)
    assert ask(check="true", method="layercam")["measured"] is None
    assert "measured" not in ask()
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [base64.b64encode(encoded(noise(64, 64))).decode()]}
    asked = {"inputs": [image], "parameters": {"method": "gradcam", "check": True}}
    v2 = json.loads(model.run([Call(True, {}, {"body": asked})])[0].body)
    check_schema(v2, {"$ref": "#/components/schemas/V2Explained"}, model.openapi)
    assert json.loads(v2["parameters"].pop("measured")) == told["measured"]
    assert v2["parameters"] == {name: told[name] for name in ("method", "layer", "weights")}
    assert model.metadata["choice"]["report"] == report
    assert model.explain(noise(64, 64), method="gradcam")[0].measured == told["measured"]
    assert find_fault(told) is None
    assert read_result(told).measured == told["measured"]
    assert find_fault({**told, "measured": {**told["measured"], "pictures": "5"}}) == "measured"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"weights": "sha256:" + "0" * 64}, "the weights sha256:000000000000 were measured, and sha256:"),
        ({"input": "resize=99"}, "measured was with 'resize=99', and served is with 'resize="),
        ({"weights": None}, "did not say which weights were measured"),
    ],
)
def test_what_was_measured_of_another_model_is_not_told_as_this_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], why: str
) -> None:
    """Other weights, another preparation of pictures, or an older report: log and metadata say why, and answers have nothing."""
    model = Model.from_archive(measured_archive(tmp_path / "measured", **changed))

    reply = model.run([Call(True, {}, {"data": bytes(encoded(noise(64, 64))), "check": "true", "method": "gradcam"})])[0]

    assert json.loads(reply.body)["measured"] is None
    assert why in model.metadata["choice"]["mismatch"]
    assert why in caplog.text
    assert model.explain(noise(64, 64), method="gradcam")[0].measured is None


def test_an_archive_without_a_report_answers_as_ever(tmp_path: Path) -> None:
    """Its checks say nothing of measurements, nor does its OpenAPI document."""
    model = Model.from_archive(build.archive(tmp_path))

    reply = model.run([Call(True, {}, {"data": bytes(encoded(noise(64, 64))), "check": "true"})])[0]

    assert "measured" not in json.loads(reply.body)
    assert "measured" not in model.openapi["components"]["schemas"]["Answer"]["properties"]
    assert model.metadata["choice"] is None


def test_a_file_that_is_no_report_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be anything of that name; the worker starts, and its log says so."""
    assert read_choice(None, "w", "i") == (None, None)
    assert read_choice(tmp_path, "w", "i") == (None, None)
    report = json.loads((measured_archive(tmp_path / "measured") / MEASURED).read_text())
    bad = [{**report, "rows": [{**report["rows"][0], "cost": float("nan")}]}, {**report, "quarters": float("inf")}]
    huge = json.dumps(report).replace('"cost": 1.0', '"cost": 1e999', 1)
    for text in ("no JSON", "[]", '{"best": {"layer": "a", "method": "b"}, "rows": []}', *map(json.dumps, bad), huge):
        (tmp_path / MEASURED).write_text(text)
        assert read_choice(tmp_path, "w", "i") == (None, None)
    assert "is no report of what was measured" in caplog.text
