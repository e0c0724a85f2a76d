"""The shipped rules and dashboard over an ASGI host, scraped by a real Prometheus: a queue that overflows is told."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import yaml
from tests.conftest import ROOT
from tests.promises.numbers.test_drift_live import prometheus
from tests.support import build
from tests.support.processes.waiting import wait_until

from camserve.monitoring.metrics import EVIDENCE, METRICS
from camserve.tools.commands import doctor
from camserve.tools.serving.asgi_server import AsgiServer

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus: apt-get install prometheus"),
]
WINDOW = 60
PANELS = [each for each in json.loads((ROOT / "deploy" / "grafana" / "camserve.json").read_text())["panels"] if "targets" in each]


@dataclass
class Watched:
    """A host with one slow model, and the Prometheus that watches it."""

    server: AsgiServer
    prometheus: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        answer = requests.get(f"{self.prometheus}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", (expr, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expr: str) -> float:
        """The only value of an expression; NaN where there is none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if len(found) == 1 else float("nan")

    def exported(self) -> str:
        """The text of the metrics address."""
        return requests.get(f"{self.server.metrics_url}/metrics", timeout=30).text


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """All windows of the rules are a minute; nothing waits before an alert."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "store").mkdir()
    build.mar(
        folder / "store",
        "busy",
        explain={**build.PLAIN, "monitor": {"interval": 0.5}},
        settings={"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "jobQueueSize": 2},
        fault="import time; time.sleep(0.1)",
    )
    with AsgiServer(folder / "store") as server:
        scraping = prometheus(server, folder)  # type: ignore[arg-type]
        rules = folder / "rules.yml"
        text = re.sub(r"\[(?:3m|10m|30m|1h|6h|1d)\]", f"[{WINDOW}s]", rules.read_text())
        rules.write_text(text)
        with scraping as url:
            yield Watched(server, url)


def test_a_full_queue_raises_its_alert_and_times_are_those_of_answers(watched: Watched) -> None:
    """What comes, what is answered and what is refused is counted as TorchServe's rules expect it."""
    wait_until(lambda: bool(watched.query("ts_inference_requests_total")))
    time.sleep(2)
    picture = bytes(build.encoded(build.noise()))

    def ask(number: int) -> tuple[int, float]:
        began = time.monotonic()
        path = ("predictions", "explanations")[number % 2]
        answer = requests.post(f"{watched.server.url}/{path}/busy", data=picture, timeout=60)
        return answer.status_code, time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(80)))
    refused = sum(status == 503 for status, _ in answers)
    assert {status for status, _ in answers} == {200, 503}
    assert refused >= 10
    wait_until(lambda: watched.value('sum(camserve_requests_total{outcome="ok"})') == 80 - refused)
    wait_until(lambda: bool(watched.query('ALERTS{alertname="CamserveRefused", alertstate="firing", model_name="busy"}')))

    assert watched.value("sum(ts_inference_requests_total)") == 80
    assert watched.value('camserve_host_unanswered_total{reason="full"}') == refused
    share = watched.value('camserve:unanswered:ratio{window="10m"}')
    assert share == pytest.approx(refused / 80, abs=0.15)  # `increase` extrapolates
    took = sum(seconds for status, seconds in answers if status == 200) / (80 - refused)
    mean = watched.value("camserve:latency_seconds:mean10m")  # of what came since the first scrape that saw one
    assert took / 10 < mean < took * 10  # a wrong unit is a thousand times; clients wait for a busy machine too
    assert 0 < watched.value("camserve:queue_seconds:mean10m") < mean
    assert watched.query('ALERTS{alertname="CamserveDown"}') == []


def test_the_dashboards_panels_on_requests_show_something(watched: Watched) -> None:
    """Those that need no reference of the maps."""
    filled = {"$model": "busy", "$version": "1.0", "$window": "1h", "$__rate_interval": "1m"}
    empty = []
    for panel in PANELS:
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in filled.items():
                expr = expr.replace(name, value)
            if re.search(r"ts_|camserve_requests|:latency|:queue|:unanswered|stage", expr) and not watched.query(expr):
                empty.append((panel["title"], expr))
    assert empty == []


def test_names_and_labels_are_those_that_torchserve_is_told_to_export(watched: Watched) -> None:
    """`metrics.yaml` declares them; TorchServe adds the machine's name, and so does this host."""
    declared = yaml.safe_load((ROOT / "handlers" / "camserve" / "metrics.yaml").read_text())
    text = watched.exported()
    ours = {
        metric.name: {*metric.labels, "model_name", "model_version", "Hostname"} for metric in METRICS if metric not in EVIDENCE
    }
    theirs = {
        each["name"]: set(each["dimensions"]) for each in declared["ts_metrics"]["counter"] if each["name"].startswith("ts_")
    }
    for name, labels in (ours | theirs).items():
        series = re.findall(rf"^{name}\{{([^}}]*)\}}", text, re.MULTILINE)
        assert f"# TYPE {name} " in text
        assert all(set(re.findall(r'(\w+)="', each)) == labels for each in series), (name, series[:1])
        assert series or "reference" in name or name == "camserve_map_bin_total"


def test_the_doctor_tells_of_what_was_refused(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    """And says nothing of a delay that this host does not have."""
    assert doctor.main([watched.server.url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"busy 1.0: \d+ of \d+ requests found the queue full", said), said
    assert "maxBatchDelay" not in said
    assert "exports camserve's metrics" in said
