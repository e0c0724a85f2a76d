"""Every metric that is exported. `metrics.yaml` in the root of the package declares the same to TorchServe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric as `metrics.yaml` declares it; every metric has the labels `model_name` and `model_version` besides."""

    name: str
    kind: Literal["COUNTER", "GAUGE"]
    unit: str
    labels: tuple[str, ...] = ()


REQUESTS = Metric("camserve_requests_total", "COUNTER", "Count", ("mode", "outcome"))
RESPONSE_BYTES = Metric("camserve_response_bytes_total", "COUNTER", "Bytes", ("mode",))
MAPS = Metric("camserve_maps_total", "COUNTER", "Count")
DEGENERATE = Metric("camserve_degenerate_maps_total", "COUNTER", "Count", ("reason",))
UNMEASURED = Metric("camserve_unmeasured_maps_total", "COUNTER", "Count", ("reason",))
MAP_BIN = Metric("camserve_map_bin_total", "COUNTER", "Count", ("stat", "bin", "reference"))
STAGE_BUCKET = Metric("camserve_stage_seconds_bucket", "COUNTER", "Count", ("stage", "le"))
STAGE_SUM = Metric("camserve_stage_seconds_sum", "COUNTER", "Seconds", ("stage",))
STAGE_COUNT = Metric("camserve_stage_seconds_count", "COUNTER", "Count", ("stage",))
MONITORED = Metric("camserve_monitored_ratio", "GAUGE", "Ratio")
REFERENCE = Metric("camserve_map_bin_reference_ratio", "GAUGE", "Ratio", ("stat", "bin", "reference"))
REFERENCE_IMAGES = Metric("camserve_map_reference_images", "GAUGE", "Count", ("stat", "reference"))
GROUP_REFERENCE = Metric("camserve_map_bin_group_reference_ratio", "GAUGE", "Ratio", ("stat", "bin", "class_group", "reference"))
GROUP_IMAGES = Metric("camserve_group_reference_images", "GAUGE", "Count", ("class_group", "reference"))
EVIDENCE_KEPT = Metric("camserve_evidence_kept_total", "COUNTER", "Count", ("reason",))
EVIDENCE_DROPPED = Metric("camserve_evidence_dropped_total", "COUNTER", "Count", ("reason",))
EVIDENCE_BYTES = Metric("camserve_evidence_bytes", "GAUGE", "Bytes")
EVIDENCE_RECORDS = Metric("camserve_evidence_records", "GAUGE", "Count")
EVIDENCE = (EVIDENCE_KEPT, EVIDENCE_DROPPED, EVIDENCE_BYTES, EVIDENCE_RECORDS)
"""Those of evidence: a server that does not declare them still exports the others."""
METRICS = (
    *(REQUESTS, RESPONSE_BYTES, MAPS, DEGENERATE, UNMEASURED, MAP_BIN, STAGE_BUCKET, STAGE_SUM, STAGE_COUNT),
    *(MONITORED, REFERENCE, REFERENCE_IMAGES, GROUP_REFERENCE, GROUP_IMAGES),
    *EVIDENCE,
)

STAGES = ("batch", "decode", "forward", "backward", "render")
EDGES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper edges of the stages' buckets, in seconds: from a single map (0.1 ms) to a large batch (seconds)."""


def undeclared(cache: Mapping[object, Collection[str]]) -> list[str]:
    """Lists the metrics, but for `EVIDENCE`, that a server drops: its `metrics_config` (names by kind) does not declare them."""
    declared = {name for names in cache.values() for name in names}
    return [metric.name for metric in METRICS if metric.name not in declared and metric not in EVIDENCE]
