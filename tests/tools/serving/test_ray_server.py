"""What a Ray of its own gives to replicas; that it serves, `tests/hosts/ray` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.processes.serving import write_archive

from camserve.tools.serving import ray_server
from camserve.tools.serving.ray_server import RayServer


@pytest.mark.parametrize(
    ("options", "threads", "cores"),
    [
        ({}, 2, 6),
        ({"num_replicas": 4}, 1, 10),
        ({"num_replicas": 4, "ray_actor_options": {"num_cpus": 2}}, 2, 18),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 8}}, 1, 18),
        ({"num_replicas": "auto"}, 2, 6),
        ({"num_replicas": 3, "ray_actor_options": {"num_cpus": 0.5}}, 0.5, 6),
    ],
)
def test_there_is_room_for_all_replicas_twice(
    options: dict[str, Any], threads: float, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for those that come under load; each has its share of the cores that there are, here two."""
    monkeypatch.setattr(ray_server, "count_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    store = tmp_path / "store"
    store.mkdir()
    write_archive(store, "small")
    server = RayServer(store, deployments={"small": options})
    server._archives = server._select()
    deployments = server._complete()
    assert deployments["small"]["ray_actor_options"]["num_cpus"] == threads
    assert server._count_cores(deployments) == cores
