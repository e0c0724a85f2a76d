"""Drift on a real stack: TorchServe with the demo's model, a real Prometheus with the shipped rules, real photographs."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from benchmarks.drift import crops
from benchmarks.drift.psi import drift, psi
from tests.conftest import ROOT
from tests.support import build
from tests.support.processes.waiting import HANG, wait_until
from tests.support.skip_report import OLD_PYTHON

from camserve.monitoring.measure import Measurements
from camserve.monitoring.reference import BINS, CLASS, FILE, UNSEEN, Reference
from camserve.monitoring.statistics import INPUT_STATISTICS, MAP_STATISTICS, STATISTICS, map_statistics, score_statistics
from camserve.tools.archive.archive import open_archive
from camserve.tools.archive.rewriting import put_file
from camserve.tools.commands import reference
from camserve.tools.commands.serve import Server
from camserve.tools.watching.evidence.numbers.drift import judge
from camserve.tools.watching.evidence.numbers.prometheus import fetch_counts
from camserve.tools.watching.evidence.periods import Period

pytestmark = pytest.mark.live

MODEL = "efficientnet_lite0"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "camserve.json"
MIX = dict.fromkeys(crops.NAMES, 1.0)
PICTURES = 270
"""Of each kind; of fewer than 250 in their window the rules say nothing."""
GOOD = 300
"""Pictures of the reference."""
SCRAPE = 1.1
"""Seconds between two scrapes, at the most: as much PromQL's `increase` may add at either end of a window."""
MARGIN = 8
"""Seconds of silence between two kinds of traffic: so long may the rules' window reach back before one of them began."""

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus: apt-get install prometheus")


@dataclass
class Stack:
    """A server that is watched by a Prometheus, and what has been sent to it."""

    server: Server
    prometheus: str
    rules: Path
    archive: Path
    found: Reference
    sent: int = 0

    def query(self, expr: str, **options: Any) -> list[dict[str, Any]]:
        """The result of an instant query."""
        answer = requests.get(f"{self.prometheus}/api/v1/query", params={"query": expr, **options}, timeout=HANG).json()
        assert answer["status"] == "success", (expr, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def by_label(self, expr: str, label: str, **options: Any) -> dict[str, float]:
        """Values by one label."""
        return {each["metric"][label]: float(each["value"][1]) for each in self.query(expr, **options)}

    def bins(self, expr: str, **options: Any) -> dict[str, Any]:
        """Values `[10]` of the bins, by statistic."""
        found = {name: np.zeros(BINS) for name in (*STATISTICS, CLASS)}
        for each in self.query(expr, **options):
            found[each["metric"]["stat"]][int(each["metric"]["bin"])] += float(each["value"][1])
        return found

    def settle(self) -> None:
        """Returns when Prometheus has seen every picture that was sent."""
        expr = f"sum(camserve_maps_total) == {self.sent} and sum(camserve_map_bin_total{{stat='confidence'}}) == {self.sent}"
        wait_until(lambda: bool(self.query(expr)))

    def send(self, pictures: Sequence[bytes], path: str = "predictions", **options: Any) -> list[Any]:
        """Every picture's answer, in order; eight are under way at a time."""
        with requests.Session() as session, ThreadPoolExecutor(8) as threads:

            def post(picture: bytes) -> Any:
                answer = session.post(f"{self.server.url}/{path}/{MODEL}", data=picture, timeout=HANG, **options)
                answer.raise_for_status()
                return answer.json()

            answers = list(threads.map(post, pictures))
        self.sent += len(pictures)
        return answers

    def counts(self) -> dict[str, Any]:
        """The bins' counts `[10]` by statistic, as TorchServe exports them now; all are of the archive's reference."""
        found = {name: np.zeros(BINS) for name in (*STATISTICS, CLASS)}
        series = re.findall(r'camserve_map_bin_total\{stat="(\w+)",bin="(\d)",reference="(\w+)",[^}]*\} (\S+)', self.exported())
        for stat, place, name, value in series:
            assert name == self.found.digest
            found[stat][int(place)] += float(value)
        return found

    def exported(self) -> str:
        """The text of TorchServe's metrics address."""
        scheme, host, port = self.server.url.split(":")
        return requests.get(f"{scheme}:{host}:{int(port) + 2}/metrics", timeout=HANG).text

    def judge(self, start: float) -> Verdict:
        """What the shipped rules say, over a window from `start` till now."""
        self.settle()
        while True:
            window = round(time.time() - start) + MARGIN - 2
            write_rules(self.rules, window)
            requests.post(f"{self.prometheus}/-/reload", timeout=HANG).raise_for_status()
            reloaded = time.time()
            wait_until(lambda: self.evaluated() > reloaded + 2)  # noqa: B023 called at once
            at = self.evaluated()  # one moment for all that is asked: the rules are evaluated each second
            alerts = self.query('ALERTS{alertname=~"Camserve.*Drift", window="1h"}', time=at)
            found = Verdict(
                {(each["metric"]["alertname"], each["metric"]["stat"]) for each in alerts},
                self.by_label('camserve:map_psi{window="1h"}', "stat", time=at),
                self.by_label('camserve:map_psi:unadjusted{window="1h"}', "stat", time=at),
                self.by_label('camserve:map_images:increase{window="1h"}', "stat", time=at),
                self.bins('camserve:map_bin:increase{window="1h"}', time=at),
                window,
            )
            if time.time() - window < start:
                return found

    def evaluated(self) -> float:
        """When the group of rules that was evaluated longest ago was."""
        groups = requests.get(f"{self.prometheus}/api/v1/rules", timeout=HANG).json()["data"]["groups"]
        return min(np.datetime64(group["lastEvaluation"].rstrip("Z")[:26], "us").astype(float) / 1e6 for group in groups)


@dataclass
class Verdict:
    """Alerts as (name, statistic), and by statistic PSI, PSI against the whole reference, pictures seen, and those of each bin."""

    alerts: set[tuple[str, str]]
    psi: dict[str, float]
    unadjusted: dict[str, float]
    images: dict[str, float]
    bins: dict[str, Any]
    window: int

    def statistics(self, alert: str) -> set[str]:
        """Those for which an alert of that name was raised."""
        return {stat for name, stat in self.alerts if name == alert}


def write_rules(path: Path, window: int) -> None:
    """The shipped rules with short windows, evaluated each second, and without waiting before an alert."""
    text = re.sub(r"\[(?:1h|1d)\]", f"[{window}s]", RULES.read_text())
    text = re.sub(r"interval: \w+", "interval: 1s", text)
    path.write_text(re.sub(r"for: \w+", "for: 0s", text))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def stack(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo's archive with a reference, served; and a Prometheus that scrapes it each second."""
    folder = tmp_path_factory.mktemp("drift")
    (folder / "good").mkdir()
    (folder / "store").mkdir()
    for place, picture in enumerate(crops.traffic(GOOD, MIX, seed=1)):
        (folder / "good" / f"{place}.jpg").write_bytes(picture)
    archive = Path(shutil.copy(demo_store / f"{MODEL}.mar", folder / "store"))
    with open_archive(archive) as opened:
        config = {**opened.config, "explain": {**opened.config["explain"], "monitor": {"interval": 0.5}}}
    put_file(archive, "model-config.yaml", yaml.safe_dump(config))
    assert reference.main(["--trust", "--archive", str(archive), str(folder / "good")]) == 0
    with open_archive(archive) as opened:
        found = Reference.from_json((opened.directory / FILE).read_text())
    with Server(folder / "store", config=ROOT / "config.properties", port=0) as server, prometheus(server, folder) as url:
        started = Stack(server, url, folder / "rules.yml", archive, found)
        wait_until(lambda: bool(started.query("camserve_map_bin_total")))
        time.sleep(MARGIN)
        yield started


class prometheus:  # noqa: N801 used as a function
    """A Prometheus of one's own that scrapes `server`; its URL."""

    def __init__(self, server: Server, folder: Path) -> None:
        write_rules(folder / "rules.yml", 30)
        metrics = f"127.0.0.1:{int(server.url.rpartition(':')[2]) + 2}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "camserve", "static_configs": [{"targets": [metrics]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> str:
        options = [f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data"]
        options += [f"--web.listen-address={self.address}", "--web.enable-lifecycle", "--log.level=error"]
        self.process = subprocess.Popen(["prometheus", *options])
        wait_until(self.ready)
        return f"http://{self.address}"

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(HANG)

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None
        try:
            return requests.get(f"http://{self.address}/-/ready", timeout=HANG).ok
        except requests.ConnectionError:
            return False


def reconstructed(answers: Sequence[Mapping[str, Any]]) -> Measurements:
    """The statistics of what explanations of the two most probable classes say: each heatmap, scaled back to its range."""
    values = {name: np.full(len(answers), np.nan) for name in STATISTICS}
    maps = np.stack([[raw(each) for each in answer["explanations"]] for answer in answers])
    values |= map_statistics(maps[:, 0], maps[:, 1])
    top = [[each["probability"] for each in answer["classes"][:2]] for answer in answers]
    values |= score_statistics([each[0] for each in top], [each[1] for each in top])
    values["width"] = np.array([float(answer["image"]["width"]) for answer in answers])
    values["height"] = np.array([float(answer["image"]["height"]) for answer in answers])
    return Measurements(values, [answer["classes"][0]["index"] for answer in answers], [""] * len(answers))


def raw(explanation: Mapping[str, Any]) -> Any:
    """The map that the heatmap was scaled from."""
    low, high = explanation["range"]
    return np.array(explanation["heatmap"], dtype=np.float32) * np.float32(high - low) + np.float32(low)


@needs_prometheus
def test_clean_traffic_raises_nothing_and_psi_is_numpys(stack: Stack) -> None:
    """PSI in PromQL equals PSI that NumPy computes of the answers themselves, within 1e-3; every picture is counted once."""
    start = time.time()
    answers = stack.send(list(crops.traffic(PICTURES, MIX, seed=2)), "explanations", headers={"x-explain-top-k": "2"})
    told = stack.judge(start)
    expected = drift(reconstructed(answers), stack.found)

    assert told.alerts == set()
    for name in (*MAP_STATISTICS, "confidence", "margin", "width", "height", CLASS):
        assert told.psi[name] == pytest.approx(expected.psi[name], abs=1e-3), name
        assert told.unadjusted[name] == pytest.approx(expected.unadjusted[name], abs=1e-3), name
    now = datetime.now(timezone.utc)
    counted = judge(
        fetch_counts(stack.prometheus, MODEL, stack.found.digest, Period(now - timedelta(seconds=told.window + 5), now)),
        stack.found,
    )
    for name in (*MAP_STATISTICS, CLASS):  # as the page of evidence counts
        assert counted[name].psi == pytest.approx(expected.psi[name], abs=0.02), name
        assert counted[name].images == pytest.approx(expected.images[name], rel=2 * SCRAPE / (told.window - 2))
    counts = stack.counts()
    known = PICTURES - counts[CLASS][UNSEEN]
    assert known > 0.9 * PICTURES
    assert {name: sum(each) for name, each in counts.items()} == {
        name: known if name in MAP_STATISTICS else PICTURES for name in (*STATISTICS, CLASS)
    }


@needs_prometheus
def test_another_class_mix_is_called_that(stack: Stack) -> None:
    """Mostly cats: the classes' drift is told, the maps' is not, though against the whole reference it is large."""
    start, before = time.time(), stack.counts()
    stack.send(list(crops.traffic(PICTURES, {"cat": 6, "coffee": 2, "rocket": 1, "china": 1, "flower": 1}, seed=3)))
    told = stack.judge(start)
    check_psi(stack, told, before)

    assert told.statistics("CamserveClassMixDrift") == {CLASS}
    assert told.alerts == {("CamserveClassMixDrift", CLASS)}
    assert max(told.unadjusted[name] for name in MAP_STATISTICS) > 0.25


def check_psi(stack: Stack, told: Verdict, before: Mapping[str, Any]) -> None:
    """Every picture was counted once, and PromQL's PSI is NumPy's, to 1e-3, on the increases that PromQL takes it of.

    Not on the counts: `increase` extrapolates each series to the window's start, by as much as a missed scrape leaves open, but
    not below zero, so that a bin that was nearly empty before is stretched less than the others.
    """
    after = stack.counts()
    unseen = after[CLASS][UNSEEN] - before[CLASS][UNSEEN]
    for name, counts in after.items():
        assert sum(counts - before[name]) == (PICTURES - unseen if name in MAP_STATISTICS else PICTURES)
        new = told.bins[name]
        whole = stack.found.group_images if name == CLASS else stack.found.table(name).sum(0)
        assert told.unadjusted[name] == pytest.approx(psi(new / new.sum(), whole / whole.sum()), abs=1e-3), name


@needs_prometheus
@pytest.mark.parametrize(
    ("how", "statistics", "of_input"),
    [
        pytest.param({"spoil": crops.blur(3), "shift": 0.25}, {"centroid_x"}, {"sharpness"}, id="blurred and shifted"),
        pytest.param({"spoil": crops.blur(3)}, {"entropy", "area", "peak"}, {"sharpness"}, id="blur", marks=pytest.mark.slow),
        pytest.param({"shift": 0.25}, {"centroid_x"}, set(), id="shifted", marks=pytest.mark.slow),
        pytest.param(
            {"spoil": crops.watermark(0.4)},
            {"entropy", "centroid_x", "centroid_y", "border", "peak"},
            set(),
            id="watermark",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"spoil": crops.dark(0.3)}, {"centroid_x", "centroid_y"}, {"brightness"}, id="darker", marks=pytest.mark.slow
        ),
    ],
)
def test_each_corruption_raises_its_alert(stack: Stack, how: dict[str, Any], statistics: set[str], of_input: set[str]) -> None:
    """The same subjects in the same mix, spoiled: attention drifts, and what is wrong with the camera is told beside it, if anything
    is. Of the usual run is one that does both."""
    start, before = time.time(), stack.counts()
    stack.send(list(crops.traffic(PICTURES, MIX, seed=2, **how)))
    told = stack.judge(start)
    check_psi(stack, told, before)

    assert told.statistics("CamserveAttentionDrift") & statistics
    assert of_input <= told.statistics("CamserveInputDrift") <= set(INPUT_STATISTICS)


@needs_prometheus
def test_every_panel_of_the_dashboard_shows_something(stack: Stack) -> None:
    """Each panel's queries, with its variables filled in, are answered by the live Prometheus."""
    filled = {"$model": MODEL, "$version": "1.0", "$window": "1h", "$__rate_interval": "1m", "$reference": stack.found.digest}
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if "targets" in panel]  # rows and texts have none
    empty = []
    for panel in panels:
        for target in panel["targets"]:
            for statistic in (*STATISTICS, CLASS) if "$statistic" in target["expr"] else ("",):
                expr = target["expr"].replace("$statistic", statistic)
                for name, value in filled.items():
                    expr = expr.replace(name, value)
                assert "$" not in expr
                if not stack.query(expr):
                    empty.append((panel["title"], statistic))

    assert len(panels) >= 12
    assert empty == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason=OLD_PYTHON)
def test_the_dashboard_is_what_its_code_makes() -> None:
    """deploy/grafana/camserve.json is generated, not edited."""
    code = "import runpy; print(runpy.run_path('deploy/grafana/dashboard.py')['text'](), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert made.stdout == DASHBOARD.read_text()


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus: apt-get install prometheus")
def test_the_rules_do_what_their_own_test_says() -> None:
    """promtool's unit tests of deploy/prometheus/rules.yml; the configuration that names them is valid."""
    folder = ROOT / "deploy" / "prometheus"
    tested = subprocess.run(
        ["promtool", "test", "rules", "drift_test.yml", "service_test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=folder, capture_output=True, text=True, check=False
    )

    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_counts_are_exact_over_several_workers_that_print(tmp_path: Path) -> None:
    """Two workers of a model that prints half lines in every pass: each picture, request and stage is counted once."""
    archive = build.mar(
        tmp_path,
        "noisy",
        explain={**build.PLAIN, "monitor": {"interval": 0.2}},
        settings={"minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 5},
        fault='print("loss: ", end=""); print("0.5", "of", 3); print("no end", end="")',
    )
    good = tmp_path / "good"
    good.mkdir()
    for seed in range(120):
        (good / f"{seed}.png").write_bytes(build.encoded(build.noise(seed=seed)))
    assert reference.main(["--trust", "--archive", str(archive), str(good)]) == 0
    with Server(tmp_path, config=ROOT / "config.properties", port=0) as server, requests.Session() as session:
        metrics = f"{server.url.rpartition(':')[0]}:{int(server.url.rpartition(':')[2]) + 2}/metrics"

        def post(seed: int) -> int:
            mode = "predictions" if seed % 4 else "explanations"
            answer = session.post(f"{server.url}/{mode}/noisy", data=bytes(build.encoded(build.noise(seed=seed))), timeout=HANG)
            answer.raise_for_status()
            return len(answer.content)

        with ThreadPoolExecutor(8) as threads:
            sizes = list(threads.map(post, range(400)))
        series = {"camserve_maps_total": 400, "camserve_requests_total": 400, "camserve_response_bytes_total": sum(sizes)}

        def told() -> bool:
            text = session.get(metrics).text
            return all(total(text, name) >= count for name, count in series.items())

        wait_until(told, "that all is counted")
        time.sleep(1)  # whatever is counted twice would be by now
        text = session.get(metrics).text

    assert total(text, "camserve_maps_total") == 400
    assert total(text, "camserve_requests_total", 'mode="predict",outcome="ok"') == 300
    assert total(text, "camserve_requests_total", 'mode="explain",outcome="ok"') == 100
    assert total(text, "camserve_response_bytes_total") == sum(sizes)
    assert total(text, "camserve_stage_seconds_count", 'stage="decode"') == 400
    assert total(text, "camserve_map_bin_total", 'stat="confidence"') == 400
    assert total(text, "camserve_map_bin_total", 'stat="class"') == 400


def total(text: str, name: str, labels: str = "") -> float:
    """The sum of a metric's series that have these labels first."""
    return sum(float(value) for value in re.findall(rf"^{name}{{{re.escape(labels)}[^}}]*}} (\S+)$", text, re.MULTILINE))
