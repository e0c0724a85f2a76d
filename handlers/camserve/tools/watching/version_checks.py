"""Checks one version of a model by what TorchServe's management address and the version's handler say of it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from camserve.monitoring.exporter import clean_label
from camserve.monitoring.metrics import EVIDENCE, EVIDENCE_DROPPED, EVIDENCE_RECORDS, MAPS, METRICS, UNMEASURED
from camserve.tools.console import command_of
from camserve.tools.watching.finding import Finding
from camserve.tools.watching.host_checks import HOST, check_host

MAX_BATCH_DELAY = 50
"""Milliseconds of `maxBatchDelay` from which a lone request notices."""
MIN_TIMEOUT = 10
"""Seconds below which `responseTimeout` and `startupTimeout` end workers that are merely busy."""
MAX_CLOCK_DIFFERENCE = 60.0
"""Seconds by which the server's clock may differ from this machine's."""

FAILED = 0.05
"""Advise if more than this share of the predictions could not be measured, as the alert CamserveNotMeasured does."""


def check_version(name: str, description: Mapping[str, Any], exposition: str) -> Iterator[Finding]:
    """Checks workers, batching, timeouts, device, clock and monitoring of one version.

    Args:
        name: the model and its version, as findings call it.
        description: the management address's, with `customizedMetadata` where the handler gives it.
        exposition: the text of the metrics address; "" where it cannot be read.
    """
    ready = [worker for worker in description["workers"] if worker["status"] == "READY"]
    if len(ready) < max(1, description["minWorkers"]):
        yield Finding("wrong", f"{name}: {len(ready)} of {description['minWorkers']} workers are ready", "the log says why")
    yield from _batching(name, description)
    yield from _timeouts(name, description)
    yield from check_host(name, description, exposition)
    metadata = description.get("customizedMetadata")
    if not ready:
        return
    if not isinstance(metadata, Mapping):
        yield Finding(
            "wrong",
            f"{name}: its handler does not describe itself",
            "if service_envelope is set, remove it: envelopes break batches, and camserve reads KServe's bodies itself; "
            f"if not, the handler is not camserve's: {command_of('package')} makes archives that explain",
        )
        return
    if "camserve" not in metadata:
        yield Finding("wrong", f"{name}: its handler is not camserve's", f"{command_of('package')} makes archives that explain")
        return
    yield Finding("ok", f"{name}: camserve {metadata['camserve']}, layer {metadata['layer']}, weights {metadata['weights'][:19]}")
    if metadata.get("random_weights"):
        remedy = f"{command_of('package')} --weights FILE packages trained ones"
        yield Finding("advice", f"{name}: its weights are random, so its answers mean nothing", remedy)
    yield from _layers(name, metadata)
    yield from _choice(name, metadata)
    yield from _runtime(name, metadata)
    yield from _device(name, {**description, **metadata}, ready)
    yield from _clock(name, metadata)
    yield from _monitoring(name, metadata, exposition)
    yield from _evidence(name, metadata, exposition)


def _runtime(name: str, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Says why another runtime runs in place of the recorded one, and so more slowly; archives of earlier releases know none."""
    described = metadata.get("runtime") or {}
    why = described.get("why")
    if why:
        yield Finding(
            "advice",
            f"{name}: {described.get('name', 'torch')} runs in place of the recorded runtime: {why}",
            f"{command_of('package')} --runtime auto records one that can be had on such a machine",
        )


def _layers(name: str, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Says what speaks against the layers that are explained; archives of earlier releases do not tell."""
    for layer, doubt in (metadata.get("doubts") or {}).items():
        yield Finding(
            "advice",
            f"{name}: layer {layer}: {doubt}",
            f"{command_of('inspect_model')} shows what goes past each layer; {command_of('package')} without --layer chooses one",
        )


def _choice(name: str, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    """Says by which measurement layer and method were chosen; advises where others are served than it speaks for."""
    choice = metadata.get("choice")
    if not choice:
        return
    made = f", {choice['made'][:10]}" if choice.get("made") else ""
    if choice.get("mismatch"):
        yield Finding(
            "advice",
            f"{name}: the measurement in its archive says nothing of what is served: {choice['mismatch']}",
            f"{command_of('package')} --choose-by PICTURES measures anew",
        )
        return
    if (choice["layer"], choice["method"]) == (metadata["layer"], metadata["method"]):
        yield Finding("ok", f"{name}: layer and method by measurement on {choice['pictures']} pictures{made}: {choice['why']}")
        return
    served = f"{metadata['method']} of {metadata['layer']}"
    yield Finding(
        "advice",
        f"{name}: the measurement in its archive speaks for {choice['method']} of {choice['layer']}, and served is {served}",
        f"{command_of('package')} --choose-by PICTURES measures anew",
    )


def _batching(name: str, description: Mapping[str, Any]) -> Iterator[Finding]:
    if description["batchSize"] == 1:
        yield Finding(
            "advice",
            f"{name}: batchSize is 1, so every request is a forward pass of its own",
            "batchSize: 8 in model-config.yaml, or package with --batch-size",
        )
    elif description["maxBatchDelay"] > MAX_BATCH_DELAY and description.get("host") != HOST:  # which never waits for more
        yield Finding(
            "advice",
            f"{name}: a lone request waits {description['maxBatchDelay']} ms for a batch to fill",
            "maxBatchDelay: 10 or less; under load batches fill by themselves",
        )


def _timeouts(name: str, description: Mapping[str, Any]) -> Iterator[Finding]:
    if description.get("clientTimeoutInMills"):
        yield Finding("wrong", f"{name}: clientTimeoutInMills is set: requests beyond it are never answered", "remove it")
    for key, what in (("responseTimeout", "answers"), ("startupTimeout", "loads")):
        seconds = description.get(key)
        if isinstance(seconds, int) and 0 <= seconds < MIN_TIMEOUT:
            yield Finding(
                "wrong", f"{name}: {key} is {seconds} s: a worker that {what} more slowly is ended", f"{key}: 120 or more"
            )


def _device(name: str, description: Mapping[str, Any], ready: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Compares the device asked for with the one taken: TorchServe silently takes the CPU where it sees no GPU."""
    device, wanted = str(description.get("device", "")), description.get("device_type") or description.get("deviceType")
    given = any(worker.get("gpu") for worker in ready)
    if given and device == "cpu":
        yield Finding(
            "wrong",
            f"{name}: has a GPU and runs on the CPU: torch does not see it",
            "install a torch that is built for the machine's CUDA; CUDA_VISIBLE_DEVICES must hold numbers",
        )
    elif wanted == "gpu" and not given:
        yield Finding(
            "wrong",
            f"{name}: asks for a GPU and runs on the CPU: the server saw none",
            "check nvidia-smi where the server runs, and that CUDA_VISIBLE_DEVICES holds numbers",
        )
    elif device:
        yield Finding("ok", f"{name}: runs on {device}")


def _clock(name: str, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        then = datetime.datetime.fromisoformat(str(metadata["time"]))
    except (KeyError, ValueError):
        return
    ahead = (then - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    if abs(ahead) > MAX_CLOCK_DIFFERENCE:
        side = "ahead" if ahead > 0 else "behind"
        yield Finding(
            "wrong",
            f"{name}: the worker's clock is {abs(ahead):.0f} s {side} of this machine's",
            "synchronise the clocks (NTP): tokens expire by them, and Prometheus places counts by its own",
        )


def _monitoring(name: str, metadata: Mapping[str, Any], exposition: str) -> Iterator[Finding]:
    monitor = metadata.get("monitor")
    if monitor is None:
        yield _unmonitored(name, metadata, exposition)
        return
    rate = float(monitor.get("rate", 1))
    counts = _Counts.read(metadata, exposition)
    if rate == 0:
        yield Finding(
            "advice", f"{name}: the archive's rate is 0, so nothing is measured, and no drift is seen", "monitor: true, or a rate"
        )
    elif monitor.get("reference") is None:
        yield Finding(
            "advice",
            f"{name}: no reference, so drift is not watched: {monitor.get('why', '')}",
            f"{command_of('reference')} --archive NAME.mar GOOD_PICTURES",
        )
    else:
        against = f"against {monitor['reference']['images']} pictures"
        yield Finding("ok", f"{name}: drift is watched, {against}{counts.describe(rate)}")
    if counts.failed > FAILED * counts.sampled:
        yield Finding(
            "advice",
            f"{name}: {counts.failed:.0f} of {counts.sampled:.0f} predictions could not be measured",
            "the workers' log says why",
        )


def _evidence(name: str, metadata: Mapping[str, Any], exposition: str) -> Iterator[Finding]:
    """Says what is kept of predictions, and where, and whether the store takes it; archives of earlier releases keep nothing."""
    evidence = metadata.get("evidence") or {}
    if not evidence.get("kept"):
        return
    what = {"none": "maps without pictures", "thumbnail": "maps with thumbnails", "whole": "maps with whole pictures"}
    kept = _read_total(metadata, exposition, EVIDENCE_RECORDS.name)
    many = f", {kept:.0f} records now" if kept else ""
    told = what.get(evidence.get("picture", ""), "maps")
    yield Finding("ok", f"{name}: evidence is kept in {evidence.get('to')}: {told}, for {evidence.get('max_days'):g} days{many}")
    failed = _read_total(metadata, exposition, EVIDENCE_DROPPED.name, reason="failed")
    slow = _read_total(metadata, exposition, EVIDENCE_DROPPED.name, reason="slow")
    if failed or slow:
        yield Finding(
            "advice",
            f"{name}: {failed:.0f} predictions could not be kept, and {slow:.0f} because the store was too slow, since the start",
            "look for `evidence cannot be kept` in the workers' log: is there room, and may the server write there?",
        )


def _unmonitored(name: str, metadata: Mapping[str, Any], exposition: str) -> Finding:
    """Says why nothing is monitored, as far as can be known from outside; only the archive's own setting is certainly meant."""
    remedy = "monitor: true in model-config.yaml, unless that is meant"
    if not exposition or undeclared(exposition):
        why, remedy = "off in the archive, or undeclared by the server", f"metrics_config, and {remedy}"
    elif metadata.get("compiled") and (metadata.get("runtime") or {}).get("name") != "compile":
        why = "a compiled model is not, whose compiler does not take its layers' outputs, unless its archive asks for it"
    else:
        why = "the archive turns it off"
    return Finding("advice", f"{name}: nothing is monitored: {why}", remedy)


def undeclared(exposition: str) -> list[str]:
    """Lists the metrics that a server does not declare, by the text of its metrics address, which names declared ones at once."""
    declared = set(re.findall(r"^(?:# TYPE )?(camserve_\w+)", exposition, re.MULTILINE))
    return [metric.name for metric in METRICS if metric.name not in declared and metric not in EVIDENCE]


def _read_total(metadata: Mapping[str, Any], exposition: str, name: str, **labels: str) -> float:
    """Reads a metric of one version from the text of the metrics address, the sum of its series; 0 where it has none.

    A parser of the whole text would be a dependency more, and fail for one line of another metric that it cannot read.
    """
    named = {label: clean_label(str(metadata.get(key))) for label, key in (("model_name", "model"), ("model_version", "version"))}
    samples = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)", exposition, re.MULTILINE)
    series = [(dict(re.findall(r'(\w+)="([^"]*)"', given)), float(value)) for given, value in samples]
    return sum(value for given, value in series if given.items() >= {**named, **labels}.items())


@dataclass(frozen=True)
class _Counts:
    """How many predictions of one version were measured, left out for the budget, and failed, since the server started."""

    measured: float
    budget: float
    failed: float

    @classmethod
    def read(cls, metadata: Mapping[str, Any], exposition: str) -> _Counts:
        """Reads the two counters from the text of the metrics address; 0 where it has none."""
        total = partial(_read_total, metadata, exposition)
        return cls(total(MAPS.name), *(total(UNMEASURED.name, reason=reason) for reason in ("budget", "failed")))

    @property
    def sampled(self) -> float:
        """All predictions that were to be measured."""
        return self.measured + self.budget + self.failed

    def describe(self, rate: float) -> str:
        """Says on which share of the predictions maps are measured; "" where it is to be all, and there were none."""
        share = rate * (self.measured / self.sampled if self.sampled else 1)
        left = f" (the others would take more than their budget: {self.budget:.0f} until now)" if self.budget else ""
        return f", on {100 * share:.3g} % of the predictions{left}" if self.sampled or rate < 1 else ""
