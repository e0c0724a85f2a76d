"""A server that has evidence kept, whatever archives ask for: an application's log leads to it, by either id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from tests.conftest import ROOT
from tests.support import build
from tests.support.processes.waiting import HANG, wait_until

from camserve.core.config.switch import KEEP, KEEP_AT
from camserve.monitoring.evidence.reading import find_entries, list_entries, read_record
from camserve.monitoring.evidence.stores import Folder
from camserve.tools.commands import doctor
from camserve.tools.serving.asgi_server import AsgiServer
from camserve.tools.serving.base import BaseServer
from camserve.tools.serving.server import Server

PICTURE = bytes(build.encoded(build.noise()))


@pytest.mark.live
@pytest.mark.parametrize("host", [Server, AsgiServer])
def test_what_a_server_has_kept_is_found_by_the_ids_of_request_and_answer(
    host: Callable[..., BaseServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On hosts of ours the answer carries the client's own id; TorchServe's has one that it makes."""
    for name in (KEEP, KEEP_AT):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "store").mkdir()
    explain = {**build.PLAIN, "monitor": {"interval": 0.2}}
    build.mar(tmp_path / "store", "small", explain=explain, settings={"minWorkers": 1, "maxWorkers": 1})
    config = tmp_path / "config.properties"
    own = f"camserve_evidence=true\ncamserve_evidence_to={tmp_path / 'kept'}\n"
    config.write_text(f"{(ROOT / 'config.properties').read_text()}\n{own}")
    store = Folder(tmp_path / "kept")
    with host(tmp_path / "store", config=config) as server:
        url = f"{server.url}/explanations/small"
        answer = requests.post(url, data=PICTURE, headers={"X-Request-Id": "order-4711"}, timeout=HANG)
        assert answer.status_code == 200
        wait_until(lambda: list_entries(store))
        assert doctor.main([server.url, "--management", server.management_url, "--metrics", server.metrics_url]) == 0
        told = capsys.readouterr().out

    told_id = answer.headers["x-request-id"]
    (entry,) = find_entries(store, "order-4711")
    record = read_record(store, entry)
    assert (record.request_id, record.answer_id, record.explain) == ("order-4711", told_id, True)
    assert (told_id == "order-4711") == (host is AsgiServer)
    assert find_entries(store, told_id) == [entry]
    assert [each.kind for each in record.reasons] == ["sample"]
    assert record.heatmap == pytest.approx(np.array(answer.json()["explanations"][0]["heatmap"]), abs=1e-4)
    assert f"evidence is kept in {tmp_path / 'kept'}" in " ".join(told.split())
