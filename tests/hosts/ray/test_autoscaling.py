"""Ray Serve's autoscaling: replicas rise and fall with the load, and no answer is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.support.processes.ray_serving import ask, ray_serving, replicas_of, wait_for_more, workers_of
from tests.support.processes.serving import CONFIG, repeating, write_archive
from tests.support.processes.waiting import HANG, wait_until

SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
}


@pytest.mark.live
@pytest.mark.slow
def test_replicas_follow_the_load_and_no_answer_is_lost(tmp_path: Path) -> None:
    """Eight clients without a pause have two replicas, one has one; each question is answered."""
    store, replicas = tmp_path / "store", tmp_path / "replicas.yaml"
    store.mkdir()
    write_archive(store, "small", seconds=0.1)
    replicas.write_text(yaml.safe_dump({"small": {"autoscaling_config": SCALING}}))
    arguments = ("--model-store", str(store), "--config", str(CONFIG), "--replicas", str(replicas), "--drain", str(round(HANG)))
    with ray_serving(tmp_path / "logs", *arguments) as server:

        def once() -> int:
            return ask(server, "small").status_code

        with repeating([once] * 8) as many:
            wait_until(lambda: len(workers_of(server, "small")) == 2, "a second replica serves")
            wait_for_more(many, 40)
        with repeating([once]) as few:
            wait_until(lambda: len(replicas_of(server, "small")) == 1, "one of them ends")
            wait_for_more(few, 10)
        assert set(many) == set(few) == {200}
