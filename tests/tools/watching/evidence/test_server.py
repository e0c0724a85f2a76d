"""The page's server: what it gives to whom, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import expect
from tests.support.browser import CAT, DEMO, Visit
from tests.support.monitoring.evidence import keep, look_at, now
from tests.support.processes.waiting import HANG

from camserve.monitoring.evidence.reading import list_entries, read_record
from camserve.monitoring.evidence.records import Picture
from camserve.monitoring.evidence.stores import open_store
from camserve.monitoring.reference import Reference
from camserve.tools.commands import inspector
from camserve.tools.commands.inspector import Proxy
from camserve.tools.commands.serve import Server

Serve = Callable[..., Proxy]


def test_pictures_and_files_are_given_by_their_records_names(tmp_path: Path, reference: Reference, serve_pages: Serve) -> None:
    """To be shown as JPEG; the client's file byte for byte, as a download that no browser runs."""
    record = keep(tmp_path, look_at([0]), reference, begin=now() - timedelta(minutes=5), kind="whole")[0]
    home = f"{serve_pages(tmp_path).origin}/evidence"
    shown = requests.get(f"{home}/pictures/cats/{record.name}", timeout=HANG)
    assert (shown.headers["content-type"], shown.content) == ("image/jpeg", record.picture.jpeg)
    file = requests.get(f"{home}/files/cats/{record.name}", timeout=HANG)
    assert (file.headers["content-type"], file.content) == ("application/octet-stream", record.picture.file)
    assert file.headers["content-disposition"] == "attachment"
    assert file.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("pictures/cats/nothing", 404, 'no record is called \\"nothing\\"'),
        ("pictures/cats/..%2f..%2f..%2fetc%2fpasswd", 404, "nothing is at /evidence/"),
        ("pictures/..%2fcats/20260101T000000.000Z-0123456789abcdef-1-1", 404, "nothing is at /evidence/"),
        ("pictures/.../20260101T000000.000Z-0123456789abcdef-1-1", 404, "no record is called"),
        ("pictures/cats/20260101T000000.000Z-0123456789abcdef-1-1", 404, "the record is gone"),
        ("nothing", 404, "nothing is at /evidence/"),
        ("report.json?stats=area", 400, 'no option \\"stats\\"; did you mean stat?'),
        ("report.json?stat=arae", 400, 'no statistic \\"arae\\"; did you mean area?'),
        ("report.json?model=dogs", 400, 'no evidence of a model \\"dogs\\"'),
        ("report.json?against=2d", 400, "against: expected one of before, 1d or 7d"),
        ("report.json?since=<b>", 400, "expected how long ago"),
    ],
)
def test_what_is_not_there_is_told(moved: Path, serve_pages: Serve, path: str, status: int, said: str) -> None:
    """As JSON, and nothing outside of the store is read."""
    answer = requests.get(f"{serve_pages(moved).origin}/evidence/{path}", timeout=HANG)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert said in answer.text


def test_other_sites_may_link_here_and_nothing_more(moved: Path, serve_pages: Serve) -> None:
    """A link from Grafana or a chat opens the page; no script, form or frame of theirs gets anything, and no foreign name."""
    server = serve_pages(moved)
    home = f"{server.origin}/evidence"
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = requests.get(home, headers=link, timeout=HANG)
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    for headers in (
        {**link, "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Origin": "http://evil.example"},
        {"Host": "evil.example"},
    ):
        assert requests.get(home, headers=headers, timeout=HANG).status_code == 403
    sheet = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert server.pages is not None
    server.pages.dashboards = ("https://grafana.example.com",)
    for referer, path, status in (
        ("http://localhost:3000/", "latest.jpg?model=cats&since=1h", 200),
        ("https://grafana.example.com/", "latest.jpg?model=cats", 200),
        ("https://evil.example/", "latest.jpg?model=cats", 403),
        ("", "latest.jpg?model=cats", 403),
        ("http://localhost:3000/", "latest.json?model=cats", 403),
    ):
        assert requests.get(f"{home}/{path}", headers={**sheet, "Referer": referer}, timeout=HANG).status_code == status, (
            referer,
            path,
        )
    mark = {"model": "cats", "name": "x", "verdict": "right", "note": ""}
    for headers in (link, {"Origin": "http://evil.example"}):
        assert requests.post(f"{home}/marks", json=mark, headers=headers, timeout=HANG).status_code == 403
    assert requests.post(f"{home}/marks", data="{}", headers={"content-type": "text/plain"}, timeout=HANG).status_code == 415
    server.origins = ("https://evidence.example.com",)
    named = {"Host": "evidence.example.com", "Origin": "https://evidence.example.com"}
    assert requests.get(home, headers=named, timeout=HANG).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        [],
        {"model": "cats"},
        {"model": "cats", "name": "NAME", "verdict": "good", "note": ""},
        {"model": "cats", "name": "NAME", "verdict": "right", "note": "x" * 1001},
        {"model": "cats", "name": "NAME", "verdict": "right", "note": 5},
        {"model": "../cats", "name": "NAME", "verdict": "right", "note": ""},
        {"model": "cats", "name": "../../x", "verdict": "right", "note": ""},
        {"model": "cats", "name": "20260101T000000.000Z-0123456789abcdef-1-1", "verdict": "right", "note": ""},
    ],
)
def test_what_is_no_mark_is_refused(moved: Path, serve_pages: Serve, sent: object) -> None:
    """And nothing is written."""
    name = list_entries(open_store(str(moved)))[0].name
    body = {**sent, "name": name} if isinstance(sent, dict) and sent.get("name") == "NAME" else sent
    before = sorted(moved.rglob("*"))
    answer = requests.post(f"{serve_pages(moved).origin}/evidence/marks", json=body, timeout=HANG)
    assert answer.status_code in (400, 404)
    assert answer.json()["message"]
    assert sorted(moved.rglob("*")) == before


def test_a_dashboard_gets_the_latest_unusual_pictures(moved: Path, serve_pages: Serve) -> None:
    """As rows, newest first, and as one sheet with the heatmaps drawn; the sample is not among them."""
    home = f"{serve_pages(moved).origin}/evidence"
    rows = requests.get(f"{home}/latest.json?model=cats", timeout=HANG).json()
    assert requests.get(f"{home}/latest.json?model=cats&since=1764441600000&until=1h", timeout=HANG).json() == []
    assert [row["label"] for row in rows] == ["espresso", "tiger cat", "<img src=x onerror=alert(7)>", "tabby"]
    assert all(row["unusual"] == ["centroid_x higher than usual"] for row in rows)
    with Image.open(io.BytesIO(requests.get(f"{home}/latest.jpg?model=cats", timeout=HANG).content)) as sheet:
        assert sheet.size == (6 * 208 + 8, 208 + 8)
        first = sheet.convert("RGB").crop((8, 8, 208, 208))
    assert len(np.unique(np.asarray(first).reshape(-1, 3), axis=0)) > 100


def test_a_server_that_is_down_does_not_keep_anyone_from_looking(
    moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is told, and what was kept is served all the same; another file than a folder is refused."""
    served: list[Proxy] = []

    def serve(server: Proxy) -> None:
        served.append(server)

    monkeypatch.setattr(Proxy, "serve_forever", serve)
    assert inspector.main(["http://127.0.0.1:9/explanations/cats", "--evidence", str(moved)]) == 0
    said = capsys.readouterr()
    assert "does not answer (ConnectionRefusedError)" in said.err
    assert f"what was kept in {moved}: http://127.0.0.1:" in said.out
    assert served[0].pages is not None
    assert inspector.main(["http://127.0.0.1:9/explanations/cats", "--evidence", str(moved / "nothing")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert inspector.main(["http://127.0.0.1:9/explanations/cats", "--evidence", str(moved), "--origin", "x.org"]) == 1
    assert "--origin and --dashboard: expected https://HOST" in capsys.readouterr().err


@pytest.mark.live
def test_a_kept_picture_is_opened_in_the_inspector(
    look: Callable[..., Visit], live: Server, tmp_path: Path, reference: Reference, serve_pages: Serve
) -> None:
    """The client's own file is explained anew, in a tab of its own; one that was deleted meanwhile is told."""
    kept = keep(tmp_path, look_at([0]), reference, begin=now() - timedelta(minutes=5), kind="whole", model=DEMO)[0]
    store = open_store(str(tmp_path))
    picture = Picture("whole", "", kept.picture.jpeg, kept.picture.size, CAT.read_bytes(), "image/jpeg")
    record = replace(read_record(store, list_entries(store)[0]), picture=picture)
    store.write(f"{record.folder}/{record.name}.json", record.to_json())
    server = serve_pages(tmp_path, f"{live.url}/explanations/{DEMO}")
    tour = look(server.origin)
    page = tour.page
    page.goto(f"{server.origin}/evidence")
    page.locator("#groups .shot").first.click()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open in the inspector").click()
    expect(opened.value.locator("#classes .class .label").first).to_have_text("tiger cat")

    store.delete(f"{record.folder}/{record.name}.json")
    opened.value.reload()
    expect(opened.value.get_by_role("alert")).to_contain_text("This picture is not here")
