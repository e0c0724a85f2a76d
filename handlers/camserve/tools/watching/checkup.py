"""The doctor's look at one version of a model, as TorchServe's management address and the version's handler describe it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from camserve.monitoring.exporter import clean_label
from camserve.monitoring.metrics import MAPS, METRICS, UNMEASURED
from camserve.tools.console import command_of

MAX_BATCH_DELAY = 50
"""Milliseconds of `maxBatchDelay` from which a lone request notices."""
MIN_TIMEOUT = 10
"""Seconds below which `responseTimeout` and `startupTimeout` end workers that are merely busy."""
MAX_CLOCK_DIFFERENCE = 60.0
"""Seconds by which the server's clock may differ from this machine's."""

FAILED = 0.05
"""The share of predictions that could not be measured from which on it is told, as the alert CamserveNotMeasured does."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `level`: `ok`, `advice` (works, but not as well as it could) or `wrong`; `mend`: what to do."""

    level: str
    what: str
    mend: str = ""


def of_version(name: str, told: Mapping[str, Any], exported: str) -> Iterator[Finding]:
    """What is to be said of one version.

    Args:
        name: the model and its version, as findings call it.
        told: the management address's description, with `customizedMetadata` where the handler gives it.
        exported: the text of the metrics address; "" where it cannot be read.
    """
    ready = [worker for worker in told["workers"] if worker["status"] == "READY"]
    if len(ready) < max(1, told["minWorkers"]):
        yield Finding("wrong", f"{name}: {len(ready)} of {told['minWorkers']} workers are ready", "the log says why")
    yield from _batching(name, told)
    yield from _timeouts(name, told)
    metadata = told.get("customizedMetadata")
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
    yield from _device(name, {**told, **metadata}, ready)
    yield from _clock(name, metadata)
    yield from _monitoring(name, metadata, exported)


def _batching(name: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    if told["batchSize"] == 1:
        yield Finding(
            "advice",
            f"{name}: batchSize is 1, so every request is a forward pass of its own",
            "batchSize: 8 in model-config.yaml, or package with --batch-size",
        )
    elif told["maxBatchDelay"] > MAX_BATCH_DELAY:
        yield Finding(
            "advice",
            f"{name}: a lone request waits {told['maxBatchDelay']} ms for a batch to fill",
            "maxBatchDelay: 10 or less; under load batches fill by themselves",
        )


def _timeouts(name: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    if told.get("clientTimeoutInMills"):
        yield Finding("wrong", f"{name}: clientTimeoutInMills is set: requests beyond it are never answered", "remove it")
    for key, what in (("responseTimeout", "answers"), ("startupTimeout", "loads")):
        seconds = told.get(key)
        if isinstance(seconds, int) and 0 <= seconds < MIN_TIMEOUT:
            yield Finding(
                "wrong", f"{name}: {key} is {seconds} s: a worker that {what} more slowly is ended", f"{key}: 120 or more"
            )


def _device(name: str, told: Mapping[str, Any], ready: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """TorchServe's own `deviceType` says what it took: `cpu` without a word where it sees no GPU."""
    device, wanted = str(told.get("device", "")), told.get("device_type") or told.get("deviceType")
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
            f"{name}: asks for a GPU and runs on the CPU: TorchServe saw none",
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


def _monitoring(name: str, metadata: Mapping[str, Any], exported: str) -> Iterator[Finding]:
    monitor = metadata.get("monitor")
    if monitor is None:
        yield _unmonitored(name, metadata, exported)
        return
    rate = float(monitor.get("rate", 1))
    counts = _Counts.of(metadata, exported)
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
        yield Finding("ok", f"{name}: drift is watched, {against}{counts.words(rate)}")
    if counts.failed > FAILED * counts.sampled:
        yield Finding(
            "advice",
            f"{name}: {counts.failed:.0f} of {counts.sampled:.0f} predictions could not be measured",
            "the workers' log says why",
        )


def _unmonitored(name: str, metadata: Mapping[str, Any], exported: str) -> Finding:
    """Which of the possible reasons it is, as far as can be told from outside: only the archive's own is certainly meant."""
    mend = "monitor: true in model-config.yaml, unless that is meant"
    if not exported or undeclared(exported):
        why, mend = "off in the archive, or undeclared by the server", f"metrics_config, and {mend}"
    elif metadata.get("compiled"):
        why = "a compiled model is not, unless its archive asks for it"
    else:
        why = "the archive turns it off"
    return Finding("advice", f"{name}: nothing is monitored: {why}", mend)


def undeclared(exported: str) -> list[str]:
    """Our metrics that a server does not export, by the text of its metrics address, which lists what is declared at once."""
    found = set(re.findall(r"^(?:# TYPE )?(camserve_\w+)", exported, re.MULTILINE))
    return [metric.name for metric in METRICS if metric.name not in found]


@dataclass(frozen=True)
class _Counts:
    """Pictures of one version since the server started: measured, left out for want of time, and failed."""

    measured: float
    budget: float
    failed: float

    @classmethod
    def of(cls, metadata: Mapping[str, Any], exported: str) -> _Counts:
        """Read from the text of the metrics address; 0 where it says nothing."""
        wanted = {
            "model_name": clean_label(str(metadata.get("model"))),
            "model_version": clean_label(str(metadata.get("version"))),
        }

        def total(name: str, **labels: str) -> float:
            samples = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)", exported, re.MULTILINE)
            told = [(dict(re.findall(r'(\w+)="([^"]*)"', given)), float(value)) for given, value in samples]
            return sum(value for given, value in told if given.items() >= {**wanted, **labels}.items())

        return cls(total(MAPS.name), *(total(UNMEASURED.name, reason=reason) for reason in ("budget", "failed")))

    @property
    def sampled(self) -> float:
        """All of them."""
        return self.measured + self.budget + self.failed

    def words(self, rate: float) -> str:
        """Of how many predictions the map is really measured; "" where every one is meant to be, and there were none."""
        share = rate * (self.measured / self.sampled if self.sampled else 1)
        left = f" (the others would take more than their budget: {self.budget:.0f} until now)" if self.budget else ""
        return f", on {100 * share:.3g} % of the predictions{left}" if self.sampled or rate < 1 else ""
