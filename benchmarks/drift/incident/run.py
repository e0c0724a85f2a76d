"""From an alert to the pictures behind it: traffic, Prometheus, Alertmanager, the link, the page.

    python benchmarks/drift/incident/run.py --archive model_store/efficientnet_lite0.mar

Four fixed cameras look at photographs; the archive gets a reference of what they see. Clean traffic must raise nothing. Then one
camera, a fifth of the traffic, is knocked by a twentieth of its picture's side; then it gets a watermark; then a fifth camera
shows what the reference never saw. Each time the alerts come from a real Alertmanager, the link of each is opened in a real
browser, and what the page shows first must be of that camera, nine pictures of ten; the first within five seconds. Writes
incident.json into the folder --out. About six minutes on two idle cores; `--quick` sends fewer pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "handlers")]

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from tests.support.browser import CHROMIUM, QUIET

from benchmarks.drift import crops
from benchmarks.drift.incident.stack import MARGIN, Picture, Story, prepared, wait
from benchmarks.speed.conditions import processor
from camserve.monitoring.evidence.reading import list_entries, read_records
from camserve.tools.watching.evidence.sources import open_evidence

CAMERAS = {"cat": 0.2, "coffee": 0.3, "china": 0.25, "flower": 0.25}
"""What each camera looks at, and its share of the traffic."""
FAULTY, SHARE = "cat", 0.2
STRANGE = "rocket"
PICTURED = 1
"""The incident that can be seen in pictures of its page: the watermark."""
FIRST = 12
"""Pictures of the first screen, which are judged."""
WITHIN = 5.0
RIGHT = 0.9


@dataclass(frozen=True)
class Incident:
    """What goes wrong, which alert is to tell it, and of which camera the pictures are that moved it."""

    title: str
    alert: str
    camera: str
    crop: Mapping[str, Any]
    spoil: crops.Spoil | None = None


INCIDENTS = (
    Incident("one camera of four knocked by a twentieth", "CamserveAttentionDrift", FAULTY, {"shift": 0.05}),
    Incident("a watermark on one class", "CamserveAttentionDrift", FAULTY, {}, crops.watermark(0.3)),
    Incident("a class that the reference never saw", "CamserveClassMixDrift", STRANGE, {}),
)


def film(count: int, seed: Sequence[int], incident: Incident | None = None) -> Iterator[Picture]:
    """What the cameras send; in an incident its camera is faulty, and has `SHARE` of the traffic."""
    random = np.random.default_rng(seed)
    shares = dict(CAMERAS)
    if incident is not None and incident.camera == STRANGE:
        shares = {name: share * (1 - SHARE) for name, share in CAMERAS.items()} | {STRANGE: SHARE}
    for name in random.choice(list(shares), count, p=list(shares.values())):
        faulty = incident is not None and name == incident.camera
        picture = crops.crop(str(name), random, fixed=True, **(incident.crop if incident and faulty else {}))
        if incident is not None and faulty and incident.spoil:
            picture = incident.spoil(picture)
        yield str(name), crops.encoded(picture)


def look(link: str, picture: Path | None = None) -> tuple[float, list[str], dict[str, Any]]:
    """Opens a link in a browser: seconds to the first picture, the requests of the pictures shown first, and the report.

    A file `picture` gets what the screen shows.
    """
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        start = time.perf_counter()
        page.goto(link)
        page.wait_for_selector("canvas[data-drawn]", timeout=60_000)
        seconds = time.perf_counter() - start
        shots = page.locator("#groups .shot")
        shown = shots.evaluate_all(f"all => all.slice(0, {FIRST}).map(each => each.dataset.id)")
        report = page.evaluate("state.report")
        if picture:
            page.wait_for_load_state("networkidle")
            with Image.open(io.BytesIO(page.screenshot())) as shot:
                shot.convert("RGB").save(picture, quality=88, method=6)
        browser.close()
    requested = {card["id"]: card["request"] for card in report["cards"]}
    return seconds, [requested[each] for each in shown], report


def run_incident(story: Story, place: int, count: int, picture: Path | None = None) -> dict[str, Any]:
    """Clean traffic, then the incident's, the alerts, their links, and what their pages show.

    A file `picture` gets the first alert's page, of the time that the rules here look back to.
    """
    incident = INCIDENTS[place]
    begun = time.time()
    story.send(film(count // 2, [2, place]))
    story.look_back(begun)
    time.sleep(MARGIN)
    clean = story.post.told()
    time.sleep(MARGIN)
    begun = time.time()
    story.post.alerts.clear()
    story.send(film(count, [3, place], incident))
    result: dict[str, Any] = {"incident": incident.title, "clean": clean, "sending_s": round(time.time() - begun, 1)}
    story.look_back(begun)
    alerts: list[dict[str, Any]] = []

    def told() -> bool:
        alerts[:] = [alert for alert in story.post.alerts if alert["labels"]["alertname"] == incident.alert]
        return bool(alerts)

    if not wait(told, 60):
        return {**result, "alerts": story.post.told(), "passed": False}
    time.sleep(MARGIN)  # the others of this incident come too
    first = alerts[0]["annotations"]["link"]
    links = {story.post.name(alert): alert["annotations"]["link"] for alert in story.post.alerts if "stat" in alert["labels"]}
    pages = {name: look(link) for name, link in sorted(links.items())}
    if picture:
        look(first.replace("since=1d", f"since={datetime.fromtimestamp(begun, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"), picture)
    report = pages[story.post.name(alerts[0])][2]
    rows = {name: judge_page(*page[:2], incident.camera) for name, page in pages.items()}
    return {
        **result,
        "alerts": rows,
        "link": first.partition("/evidence")[2],
        "kept": report["kept"],
        "of_the_camera_among_all_kept": round(share_kept(story, incident.camera), 3),
        "counted": report["counted"],
        "passed": all(row["passed"] for row in rows.values()) and not clean,
    }


def judge_page(seconds: float, requested: Sequence[str], camera: str) -> dict[str, Any]:
    """How soon a page showed its first picture, and which share of the first ones is of the camera that the incident is about."""
    share = sum(each.rpartition("-")[0] == camera for each in requested) / max(1, len(requested))
    passed = share >= RIGHT and seconds <= WITHIN and len(requested) >= FIRST // 2
    return {"first_picture_s": round(seconds, 2), "shown": len(requested), "of_the_camera": round(share, 3), "passed": passed}


def share_kept(story: Story, camera: str) -> float:
    """Which share of all that was kept is of a camera."""
    store = open_evidence(str(story.kept)).store
    names = [record.request_id.rpartition("-")[0] for record in read_records(store, list_entries(store))]
    return names.count(camera) / max(1, len(names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, metavar="FILE", help="the demo's archive")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--pictures", type=int, default=1000, help="of an incident, and of the reference (%(default)s)")
    parser.add_argument("--only", type=int, metavar="N", choices=range(len(INCIDENTS)), help="one of the incidents, from 0")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="writes a page of the watermark as a picture (.webp)")
    parser.add_argument("--quick", action="store_true", help="with 600 pictures")
    options = parser.parse_args()
    count = 600 if options.quick else options.pictures
    places = range(len(INCIDENTS)) if options.only is None else [options.only]
    rows = []
    with prepared(options.archive, list(film(count, [1]))) as archive:
        for place in places:
            with Story(archive) as story:
                rows.append(run_incident(story, place, count, options.picture if place == PICTURED else None))
            Console().print(rows[-1])
    found: dict[str, Any] = {"date": str(date.today()), "processor": processor(), "cores": os.cpu_count()}
    found |= {"python": platform.python_version(), "pictures": count, "share": SHARE, "incidents": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "incident.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
