"""Checks of one version: real answers, changed in one place."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support import build
from tests.support.monitoring.checks import DECLARED, one
from tests.support.processes.worker import load_monitored

from camserve.monitoring.reference import FILE
from camserve.tools.archive.archive import handler_of
from camserve.tools.watching import version_checks
from camserve.tools.watching.finding import Finding


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real worker's handler says of itself."""
    service = load_monitored(build.archive(tmp_path_factory.mktemp("doctor") / "m"))
    described: dict[str, Any] = handler_of(service).describe_handle()
    return described


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
    return list(version_checks.check_version("m 1.0", {**version, **changed}, exported))


def test_a_version_in_order_has_only_the_advice_on_the_reference(metadata: dict[str, Any]) -> None:
    """So that what the others find is due to what they change."""
    assert [finding.message for finding in told(metadata) if finding.level != "ok"] == [
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

    assert any("worker's clock" in finding.message for finding in findings) is found


def test_a_layer_that_shows_little_is_advised_on(metadata: dict[str, Any]) -> None:
    """Past which much of the scores goes, as the worker measured."""
    doubt = "84% of what changes the scores goes past it, which its maps cannot show"
    finding = one(told({**metadata, "doubts": {"branch": doubt}}), "layer branch")
    assert (finding.level, finding.message) == ("advice", f"m 1.0: layer branch: {doubt}")
    assert "inspect_model" in finding.remedy


@pytest.mark.parametrize(("method", "level"), [("gradcam++", "ok"), ("gradcam", "advice")])
def test_the_measurement_behind_layer_and_method_is_told(metadata: dict[str, Any], method: str, level: str) -> None:
    """And where another layer or method is served than it speaks for."""
    choice = {"layer": metadata["layer"], "method": method, "pictures": 12, "why": "surely above all others"}
    assert one(told({**metadata, "choice": choice}), "measurement").level == level
    assert not [each for each in told(metadata) if "measurement" in each.message]
    stale = one(told({**metadata, "choice": {**choice, "mismatch": "the weights a were measured"}}), "measurement")
    assert stale.level == "advice"
    assert "the weights a were measured" in stale.message


def test_random_weights_are_found(metadata: dict[str, Any]) -> None:
    """Whatever such a model answers means nothing."""
    assert one(told({**metadata, "random_weights": True}), "its weights are random").level == "advice"
    assert not [each for each in told(metadata) if "random" in each.message]


def test_a_gpu_that_torch_does_not_see_is_found(metadata: dict[str, Any]) -> None:
    """TorchServe gives the worker a GPU, and a torch built for the CPU runs beside it without a word."""
    findings = told(metadata, deviceType="gpu", workers=[{"status": "READY", "gpu": True}])

    assert "CUDA" in one(findings, "has a GPU and runs on the CPU").remedy


def test_a_reference_of_other_weights_is_told(tmp_path: Path) -> None:
    """The worker runs without bins, and its metadata say why."""
    directory = build.archive(tmp_path / "stale")
    (directory / FILE).write_text("{}")
    handler = handler_of(load_monitored(directory))

    assert f"{FILE} cannot be read" in one(told(handler.describe_handle()), "no reference").message


def test_a_runtime_that_cannot_be_had_is_told(metadata: dict[str, Any]) -> None:
    """The worker answers all the same, more slowly."""
    runtime = {"name": "torch", "asked": "openvino", "why": "openvino: openvino is not installed here"}
    found = one(told({**metadata, "runtime": runtime}), "openvino is not installed here")
    assert (found.level, "--runtime auto" in found.remedy) == ("advice", True)


@pytest.mark.parametrize(
    ("exported", "compiled", "why"),
    [
        (DECLARED, False, "the archive turns it off"),
        (
            DECLARED,
            True,
            "a compiled model is not, whose compiler does not take its layers' outputs, unless its archive asks for it",
        ),
        (DECLARED.replace("camserve_maps_total", "other"), False, "off in the archive, or undeclared by the server"),
        ("", False, "off in the archive, or undeclared by the server"),
    ],
)
def test_an_archive_that_is_not_monitored_is_told(metadata: dict[str, Any], exported: str, compiled: bool, why: str) -> None:
    """It may be meant; nothing else would say it."""
    found = one(told({**metadata, "monitor": None, "compiled": compiled}, exported), "nothing is monitored")

    assert (found.level, found.message.split("monitored: ")[1]) == ("advice", why)


def test_an_archive_that_measures_nothing_does_not_pass_for_one_that_is_watched(metadata: dict[str, Any]) -> None:
    """It has a reference, and `monitor: {rate: 0}`."""
    monitor = {"rate": 0.0, "interval": 15.0, "reference": {"images": 300, "classes": 3}}
    findings = told({**metadata, "monitor": monitor})

    assert one(findings, "rate is 0, so nothing is measured").level == "advice"
    assert not [finding for finding in findings if "drift is watched" in finding.message]


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

    assert one(findings, "drift is watched").message == f"m 1.0: drift is watched, against 300 pictures{words}"
    assert not [finding for finding in findings if "could not be measured" in finding.message]


def test_measuring_that_fails_is_told(metadata: dict[str, Any]) -> None:
    """From the share on at which the alert fires."""
    monitor = {"rate": 1.0, "interval": 15.0, "reference": {"images": 300, "classes": 3}}
    findings = told({**metadata, "monitor": monitor, "model": "m"}, exposition("m", 90, 0, 10))

    assert one(findings, "10 of 100 predictions could not be measured").level == "advice"


def test_what_is_kept_and_where_is_told(metadata: dict[str, Any]) -> None:
    """And that the store does not take it; of an archive that keeps nothing, nothing is said."""
    assert not [finding for finding in told(metadata) if "evidence" in finding.message]
    evidence = {"kept": True, "to": "s3://bucket/kept", "picture": "none", "max_days": 30.0}
    labels = 'model_name="m",model_version="1.0",Hostname="h",'
    lines = [
        f"camserve_evidence_records{{{labels}}} 12.0\n",
        *(f'camserve_evidence_dropped_total{{reason="{reason}",{labels}}} 3.0\n' for reason in ("failed", "slow", "quota")),
    ]
    well, ill = (told({**metadata, "evidence": evidence, "model": "m"}, DECLARED + text) for text in (lines[0], "".join(lines)))

    kept = one(well, "evidence is kept")
    assert kept.level == "ok"
    assert kept.message.endswith("evidence is kept in s3://bucket/kept: maps without pictures, for 30 days, 12 records now")
    assert not [finding for finding in well if "could not be kept" in finding.message]
    assert one(ill, "3 predictions could not be kept, and 3 because the store was too slow").level == "advice"
