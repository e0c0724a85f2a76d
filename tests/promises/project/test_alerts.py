"""What the alerts and the dashboard rest on: panels by promtool, and a real server's counts of what no worker answers."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from benchmarks.survival.hardships import workers
from tests.conftest import ROOT
from tests.support import build
from tests.support.processes.gate import wait_at
from tests.support.processes.waiting import HANG, wait_until

from camserve.tools.commands.serve import Server
from camserve.tools.serving.asgi_server import AsgiServer
from camserve.tools.serving.base import BaseServer

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
PANELS = {each["title"]: each for each in json.loads((ROOT / "deploy" / "grafana" / "camserve.json").read_text())["panels"]}
FILLED = {"$model": "m", "$version": "1", "$__rate_interval": "5m"}
UP = 'up{job="camserve",instance="a"}'
CAME = 'ts_inference_requests_total{job="camserve",instance="a",model_name="m",model_version="default"}'
ANSWERED = 'camserve_requests_total{job="camserve",instance="a",model_name="m",model_version="1",mode="predict",outcome="ok"}'
LATENCY = 'ts_inference_latency_microseconds{job="camserve",instance="a",model_name="m",model_version="default"}'
QUEUE = LATENCY.replace("inference", "queue")
FULL = {CAME: "0+100x60", ANSWERED: "0+50x60", LATENCY: "0+150000000x60", QUEUE: "0+100000000x60"}
"""Of 100 requests each half minute 50 are answered, each after 3 s, of which it waited 2."""
WAITING, REFUSED = 2, 9
"""Requests that wait while the worker has one in hand, and those that then come in vain."""
Result = tuple[str, Sequence[tuple[str, float]]]
"""An expression, and its values by labels."""
Case = tuple[Mapping[str, str], int, Sequence[Result]]
"""Series, the minute of a look at them, and what is seen then."""
Number = tuple[float, str, str]
"""A value, its colour, and the word that stands for it."""
NUMBERS: dict[str, tuple[Mapping[str, str], int, Number, Number]] = {
    "well": ({UP: "1x60"}, 20, (0, "green", ""), (1, "green", "up")),
    "just down": ({UP: "1x20 0x40"}, 11, (-1, "red", "unknown"), (0, "red", "down")),
    "down": ({UP: "1x20 0x40"}, 20, (1, "red", ""), (0, "red", "down")),
    "just lost": ({UP: "1x20 _x40"}, 16, (-1, "red", "unknown"), (0, "red", "down")),
    "lost": ({UP: "1x20 _x40"}, 20, (1, "red", ""), (0, "red", "down")),
    "never there": ({}, 20, (1, "red", ""), (0, "red", "down")),
    "one of two": ({UP: "0x60", UP.replace('"a"', '"b"'): "1x60"}, 20, (1, "red", ""), (0.5, "orange", "")),
    "refused and slow": ({UP: "1x60", **FULL}, 25, (2, "red", ""), (1, "green", "up")),
    "another model": (
        {UP: "1x60", **{name.replace('"m"', '"n"'): values for name, values in FULL.items()}},
        *(25, (0, "green", ""), (1, "green", "up")),
    ),
}
"""Series, a minute, and the numbers of alerts and of servers that the dashboard shows then."""

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus: apt-get install prometheus")


def exprs(title: str) -> list[str]:
    """The queries of a panel, with the dashboard's variables filled in."""
    found = [target["expr"] for target in PANELS[title]["targets"]]
    for name, value in FILLED.items():
        found = [expr.replace(name, value) for expr in found]
    return found


def evaluated(folder: Path, *cases: Case) -> str:
    """What promtool has against these results of expressions, as (labels, value), with the shipped rules; "" for nothing."""
    tests = [
        {
            "interval": "30s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": expr,
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
                }
                for expr, samples in expected
            ],
        }
        for series, minute, expected in cases
    ]
    (folder / "test.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", folder / "test.yml"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def shown(title: str, value: float) -> tuple[str, str]:
    """A number's colour, and the word that stands for it."""
    defaults = PANELS[title]["fieldConfig"]["defaults"]
    steps = [step["color"] for step in defaults["thresholds"]["steps"] if step["value"] is None or step["value"] <= value]
    words = {key: each["text"] for mapping in defaults["mappings"] for key, each in mapping["options"].items()}
    return steps[-1], words.get(f"{value:g}", "")


@needs_promtool
def test_the_dashboard_tells_what_is_down(tmp_path: Path) -> None:
    """The first two numbers: values by promtool, which is asked once for all."""
    (alerts,), (servers,) = exprs("Alerts"), exprs("Servers")
    cases: list[Case] = []
    for name, (series, minute, *numbers) in NUMBERS.items():
        results = [(f"{expr} # {name}", [("{}", number[0])]) for expr, number in zip((alerts, servers), numbers, strict=True)]
        cases.append((series, minute, results))
    assert evaluated(tmp_path, *cases) == ""


@pytest.mark.parametrize("case", NUMBERS)
def test_the_dashboards_numbers_have_colours_and_words(case: str) -> None:
    """By the panels' own limits."""
    for title, (value, *look) in zip(("Alerts", "Servers"), NUMBERS[case][2:], strict=True):
        assert list(shown(title, value)) == look, title


@needs_promtool
def test_the_dashboard_tells_since_when_a_server_is_down(tmp_path: Path) -> None:
    """The last panel has a line for it, though that alert has no model."""
    (expr,) = exprs("Alerts, and since when")

    down: Result = (expr, [('{alertname="CamserveDown", instance="a"}', 1)])
    assert evaluated(tmp_path, ({UP: "1x20 0x40"}, 20, [down]), ({UP: "1x60"}, 20, [(expr, [])])) == ""


@needs_promtool
def test_the_dashboards_times_are_those_of_answered_requests(tmp_path: Path) -> None:
    """Half of what comes is refused: that halves neither the time to an answer nor the waiting."""
    answer, queue = exprs("Mean time to an answer, and waiting in the queue")
    (unanswered,) = exprs("Unanswered")
    labels = '{job="camserve", model_name="m"}'
    expected: list[Result] = [
        (f"round({answer}, 0.001)", [(labels, 3)]),
        (f"round({queue}, 0.001)", [(labels, 2)]),
        (f"round({unanswered}, 0.001)", [("{}", 0.5)]),
    ]

    assert evaluated(tmp_path, (FULL, 25, expected)) == ""
    assert shown("Unanswered", 0.5) == ("red", "")


@pytest.mark.live
@pytest.mark.parametrize(("host", "lost_as"), [(Server, (500, 507)), (AsgiServer, (503,))], ids=["torchserve", "asgi"])
def test_what_no_worker_answers_is_counted(
    tmp_path: Path, gate: Path, host: Callable[..., BaseServer], lost_as: Sequence[int]
) -> None:
    """Requests that come and are answered are counted alike, good or bad; those refused or lost only when they come."""
    build.mar(
        tmp_path,
        "tiny",
        explain={**build.PLAIN, "monitor": {"interval": 0.2}},
        settings={"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1, "jobQueueSize": WAITING},
        fault=wait_at(gate),
    )
    picture = bytes(build.encoded(build.noise()))
    with host(tmp_path, config=ROOT / "config.properties", port=0) as server, ThreadPoolExecutor(12) as threads:

        def ask(path: str, body: bytes = picture) -> int:
            return requests.post(f"{server.url}/{path}", data=body, timeout=HANG).status_code

        def held(path: str) -> Future[int]:
            """A request that the worker has in hand until the gate opens."""
            gate.with_name("held").unlink(missing_ok=True)
            gate.write_text(str(victim.pid))
            asked = threads.submit(ask, path)
            wait_until(gate.with_name("held").exists, "a request is in the worker")
            return asked

        (victim,) = workers(server)
        told = [ask("predictions/tiny"), ask("predictions/tiny/1.0"), ask("explanations/tiny"), ask("predictions/tiny", b"x")]
        unknown = [ask("predictions/nothing"), ask("predictions/tiny/9.9")]
        flood = [held("predictions/tiny"), *(threads.submit(ask, "predictions/tiny") for _ in range(WAITING + REFUSED))]
        wait_until(lambda: sum(each.done() for each in flood) == REFUSED, "the others are refused")
        gate.write_text("")
        flooded = [each.result() for each in flood]
        before = settled(server, (4 + len(flood), 4 + 1 + WAITING))
        lost = held("explanations/tiny")
        victim.send_signal(signal.SIGKILL)
        failed = lost.result()
        wait_until(lambda: [each.pid for each in workers(server)] not in ([], [victim.pid]), "another worker is ready")
        told.append(ask("predictions/tiny"))
        after = settled(server, (before[0] + 2, before[1] + 1))

    assert (told, unknown) == ([200, 200, 200, 400, 200], [404, 404]), "\n".join(server.lines)
    assert failed in lost_as  # TorchServe takes a SIGKILL for a lack of memory
    assert sorted(flooded) == [200] * (1 + WAITING) + [503] * REFUSED
    assert before == (4 + len(flood), 4 + 1 + WAITING)
    assert after == (before[0] + 2, before[1] + 1)


def settled(server: BaseServer, expected: tuple[float, float]) -> tuple[float, float]:
    """How many requests have come and how many were answered, once two readings are as expected; or the last for a long time."""
    end = time.monotonic() + HANG
    before, now = None, counted(server)
    while not before == now == expected and time.monotonic() < end:
        time.sleep(0.5)
        before, now = now, counted(server)
    return now


def counted(server: BaseServer) -> tuple[float, float]:
    """How many requests have come, by the server, and how many were answered, by what the workers have told until now."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=HANG).text

    def total(name: str) -> Any:
        return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))

    return total("ts_inference_requests_total"), total("camserve_requests_total")
