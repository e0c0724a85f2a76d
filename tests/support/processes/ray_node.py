"""A node of a Ray cluster that is lost under load, in .venv-ray: `ray_node.py A.mar SECONDS PORT`, what came of it as JSON.

Two worker nodes with one replica each, and a head that speaks HTTP; one of the workers is removed without a word.
"""

# ruff: noqa: E402, T201

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=str(2**31 - 1),
    PYTHONPATH=str(ROOT / "handlers"),
)

import ray
import requests
from ray import serve
from ray.cluster_utils import Cluster

import camserve
from camserve.hosts.ray import FRONT
from camserve.hosts.ray.application import build
from camserve.hosts.ray.model import APPLICATION

CLIENTS = 8


def main(archive: Path, seconds: float, port: int) -> None:
    """Starts the cluster, and prints what `measure` returns."""
    with tempfile.TemporaryDirectory(prefix="node-", dir="/tmp") as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "CAMSERVE_UNPACKED": f"{folder}/unpacked"}
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"head": 1}, "include_dashboard": False}
        )
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            print(json.dumps(measure(cluster, nodes, archive, seconds, port)))
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def measure(cluster: Any, nodes: Sequence[Any], archive: Path, seconds: float, port: int) -> dict[str, Any]:
    """Lets two kinds of clients ask, some plainly and some by the shipped client, and removes a node meanwhile.

    Returns:
        `lost`: when; `plain`: begin, end, status and content type of each plain request; `shipped`: how often what came.
    """
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    model = archive.stem
    front = {"ray_actor_options": {"num_cpus": 0, "resources": {"head": 0.1}}}
    models = {model: {"num_replicas": 2, "max_replicas_per_node": 1}, FRONT: front}
    told = {"archives": [str(archive.resolve())], "models": models}
    serve.run(build(told), name=APPLICATION, route_prefix="/")
    url, picture = f"http://127.0.0.1:{port}", (ROOT / "examples" / "cat.jpg").read_bytes()
    plain: list[tuple[float, float, int, str]] = []
    shipped: Counter[str] = Counter()
    stop = threading.Event()

    def ask_plainly() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            answer = requests.post(f"{url}/predictions/{model}", data=picture, timeout=120)
            plain.append((begun, time.monotonic(), answer.status_code, answer.headers.get("content-type", "")))

    def ask_again() -> None:
        with camserve.Client(url, timeout=120) as client:
            while not stop.is_set():
                try:
                    client.predict(picture, model=model)
                    shipped["answered"] += 1
                except camserve.CamserveError as error:
                    shipped[str(error)] += 1

    with ThreadPoolExecutor(2 * CLIENTS) as pool:
        asking = [pool.submit(each) for each in (ask_plainly, ask_again) for _ in range(CLIENTS)]
        time.sleep(seconds)
        lost = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        time.sleep(seconds)
        stop.set()
        for each in asking:
            each.result()
    return {"lost": lost, "plain": plain, "shipped": dict(shipped)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
