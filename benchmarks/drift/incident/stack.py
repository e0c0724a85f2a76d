"""A server with evidence, a Prometheus with the shipped rules, an Alertmanager, and the page's server."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import requests
import yaml
from tests.promises.numbers.test_drift_live import free_port, write_rules

from camserve.tools.archive.archive import open_archive
from camserve.tools.archive.rewriting import put_file
from camserve.tools.commands import reference
from camserve.tools.commands.inspector import Proxy, proxy
from camserve.tools.serving.asgi_server import AsgiServer
from camserve.tools.watching.evidence.pages.server import Pages
from camserve.tools.watching.evidence.sources import open_evidence

ROOT = Path(__file__).resolve().parents[3]
MODEL = "efficientnet_lite0"
CLIENTS = 4
MARGIN = 10
"""Seconds that Prometheus may take to see the last pictures, and its rules to be evaluated."""

Picture = tuple[str, bytes]
"""The camera, and a JPEG."""


class Post:
    """Where Alertmanager sends alerts: kept, to be waited for."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.alerts += [alert for alert in body["alerts"] if alert["status"] == "firing"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self) -> list[str]:
        """The alerts of drift that came, by name and statistic."""
        return sorted({self.name(each) for each in self.alerts if "stat" in each["labels"]})

    @staticmethod
    def name(alert: dict[str, Any]) -> str:
        """The name of an alert of drift, and its statistic."""
        return f"{alert['labels']['alertname']} {alert['labels']['stat']}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/"


@contextmanager
def running(*command: str, ready: str) -> Iterator[None]:
    """Runs a program of Prometheus's until the block ends; returns when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: process.poll() is not None or answers(ready), 60)
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether an address answers with success."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def wait(done: Callable[[], Any], seconds: float) -> bool:
    """Waits for something; whether it came."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def prepared(archive: Path, good: Sequence[Picture]) -> Iterator[Path]:
    """A copy of the archive, with its settings and a reference of good pictures, and examples of these."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(archive, Path(folder) / f"{MODEL}.mar"))
        with open_archive(copy) as opened:
            config = dict(opened.config)
        evidence = {"sample": 600, "per_reason": 400, "per_class": 200, "picture": "whole"}  # an hour passes in two minutes
        config["explain"] = {**config["explain"], "monitor": {"interval": 1}, "evidence": evidence}
        put_file(copy, "model-config.yaml", yaml.safe_dump(config))
        pictures = Path(folder) / "good"
        pictures.mkdir()
        for place, (_, picture) in enumerate(good):
            (pictures / f"{place:04}.jpg").write_bytes(picture)
        if reference.main(["--trust", "--archive", str(copy), "--examples", "1", str(pictures)]):
            raise RuntimeError("the reference could not be made")
        yield copy


class Story(ExitStack):
    """A server, a Prometheus, an Alertmanager and the page's server, in a folder of their own."""

    def __init__(self, archive: Path) -> None:
        super().__init__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.kept = self.folder / "evidence"
        store = self.folder / "store"
        store.mkdir()
        shutil.copy(archive, store)
        config = self.folder / "config.properties"
        config.write_text(f"{(ROOT / 'config.properties').read_text()}\ncamserve_evidence_to={self.kept}\n")
        self.server = self.enter_context(AsgiServer(store, config=config, port=0))
        self.post = Post()
        self.callback(self.post.server.shutdown)
        self.page = self.serve_page(archive)
        self.watch()

    def serve_page(self, archive: Path) -> Proxy:
        """Serves the page as `scripts/inspector.py --evidence` does."""
        self.prometheus = f"http://127.0.0.1:{free_port()}"
        served = proxy(f"{self.server.url}/explanations/{MODEL}")
        self.kept.mkdir(exist_ok=True)
        evidence = open_evidence(str(self.kept), [archive], self.prometheus)
        served.pages = Pages(evidence, MODEL, f"/explanations/{MODEL}")
        threading.Thread(target=served.serve_forever, daemon=True).start()
        self.callback(served.shutdown)
        return served

    def watch(self) -> None:
        """Starts Alertmanager, and Prometheus with the shipped rules, their windows shortened."""
        manager = f"127.0.0.1:{free_port()}"
        write_rules(self.folder / "rules.yml", 30)
        metrics = self.server.metrics_url.removeprefix("http://")
        config = {
            "global": {
                "scrape_interval": "1s",
                "evaluation_interval": "1s",
                "external_labels": {"camserve_evidence": self.page.origin},
            },
            "rule_files": ["rules.yml"],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
            "scrape_configs": [{"job_name": "camserve", "static_configs": [{"targets": [metrics]}]}],
        }
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        route = {"receiver": "post", "group_wait": "1s", "group_interval": "2s", "group_by": ["alertname", "stat"]}
        sent = {"route": route, "receivers": [{"name": "post", "webhook_configs": [{"url": self.post.url}]}]}
        (self.folder / "alertmanager.yml").write_text(yaml.safe_dump(sent))
        program = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager") or "alertmanager"
        own = [
            f"--config.file={self.folder}/alertmanager.yml",
            f"--storage.path={self.folder}/alerts",
            "--cluster.listen-address=",
        ]
        self.enter_context(running(program, *own, f"--web.listen-address={manager}", ready=f"http://{manager}/-/ready"))
        own = [f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data", "--log.level=error"]
        address = f"--web.listen-address={self.prometheus.removeprefix('http://')}"
        self.enter_context(running("prometheus", *own, "--web.enable-lifecycle", address, ready=f"{self.prometheus}/-/ready"))

    def look_back(self, begun: float) -> None:
        """Has the rules look back to a time, in place of an hour and of a day: what came since is the window."""
        write_rules(self.folder / "rules.yml", round(time.time() - begun) + MARGIN)
        requests.post(f"{self.prometheus}/-/reload", timeout=60).raise_for_status()

    def send(self, pictures: Iterator[Picture]) -> None:
        """Asks for a prediction of each picture; the request's id says which camera took it."""
        with requests.Session() as session, ThreadPoolExecutor(CLIENTS) as threads:

            def ask(sent: tuple[int, Picture]) -> None:
                place, (camera, picture) = sent
                headers = {"x-request-id": f"{camera}-{place}"}
                session.post(
                    f"{self.server.url}/predictions/{MODEL}", data=picture, headers=headers, timeout=120
                ).raise_for_status()

            list(threads.map(ask, enumerate(pictures)))
