"""The page live, beside the inspector's: reports, pictures, marks, and what Prometheus and Grafana ask for."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from camserve.core.messages import Reply
from camserve.core.text import find_nearest, join_names, show
from camserve.monitoring.evidence.names import ENDING, Entry, name_folder
from camserve.monitoring.evidence.reading import read_record
from camserve.monitoring.evidence.records import EvidenceError, Record
from camserve.tools.console import ToolError
from camserve.tools.watching.evidence import VERDICTS
from camserve.tools.watching.evidence.kept import Seen
from camserve.tools.watching.evidence.marks import add_mark, read_verdict
from camserve.tools.watching.evidence.pages.findings import Asked
from camserve.tools.watching.evidence.pages.latest import BACK, draw_latest, list_latest
from camserve.tools.watching.evidence.pages.page import write_answer
from camserve.tools.watching.evidence.periods import AGAINST, read_period
from camserve.tools.watching.evidence.sources import Evidence

HOME = "/evidence"
OPTIONS = ("model", "since", "until", "stat", "class", "alert", "against")
"""What an address may ask for."""
SINCE = "1h"
LARGEST_MARK = 10_000
"""Bytes of a mark that is sent."""
LONGEST_WHO = 200


@dataclass
class Pages:
    """Answers whatever lies below `HOME`.

    Attributes:
        model: shown where an address names none; "": the only one.
        inspector: the path of the model's inspector page; "": there is none.
        user_header: in which the proxy in front names who asks; "": nobody is named.
        dashboards: origins of pages that may show the sheet of the latest pictures.
    """

    evidence: Evidence
    model: str = ""
    inspector: str = ""
    user_header: str = ""
    dashboards: tuple[str, ...] = ()
    _marks: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, target: str) -> Reply:
        """Answers a GET of a path with its query."""
        path, _, query = target.partition("?")
        try:
            return self._get(unquote(path).removeprefix(HOME).strip("/"), _read_query(query))
        except (ToolError, EvidenceError) as error:
            return _refuse(400 if isinstance(error, ToolError) else 404, str(error))
        except OSError as error:
            return _refuse(502, f"{self.evidence.store.to} cannot be read: {error.strerror or error}")

    def embeds(self, target: str, referer: str) -> bool:
        """Tells whether another page may show what a path gives: the sheet, on this machine's pages and on `dashboards`."""
        parts = urlsplit(referer)
        known = parts.hostname in ("127.0.0.1", "localhost") or f"{parts.scheme}://{parts.netloc}" in self.dashboards
        return target.partition("?")[0] == f"{HOME}/latest.jpg" and known

    def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Answers a POST of a mark."""
        if target != f"{HOME}/marks":
            return _refuse(404, f"only {HOME}/marks takes a POST")
        kind = headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json" or len(body) > LARGEST_MARK:
            return _refuse(415, f"expected application/json of at most {LARGEST_MARK} bytes, got {show(kind)}")
        who = headers.get(self.user_header, "")[:LONGEST_WHO] if self.user_header else ""
        try:
            return self._mark(body, "".join(each for each in who if each.isprintable()))
        except (ToolError, EvidenceError) as error:
            return _refuse(400 if isinstance(error, ToolError) else 404, str(error))
        except OSError as error:
            return _refuse(502, f"{self.evidence.store.to} cannot be written: {error.strerror or error}")

    def _get(self, path: str, asked: dict[str, str]) -> Reply:
        if path == "metrics":
            return Reply(200, "text/plain; version=0.0.4; charset=utf-8", self._write_metrics().encode())
        if found := re.fullmatch(r"(pictures|files)/([^/]+)/([^/]+)", path):
            return self._give(found[1], found[2], found[3])
        folder = self._find_model(asked.get("model", ""))
        if path == "":
            return write_answer(self._report(folder, asked))
        if path == "report.json":
            return _write_json(self._report(folder, asked))
        if path in ("latest.json", "latest.jpg"):
            period = read_period(asked.get("since") or BACK, asked.get("until") or "now")
            latest = list_latest(self.evidence.store, folder, period)
            if path == "latest.jpg":
                return Reply(200, "image/jpeg", draw_latest(self.evidence.store, latest))
            return _write_json([{**row, "page": f"{HOME}?model={quote(folder)}"} for row in self._describe(latest)])
        raise EvidenceError(f"nothing is at {HOME}/{show(path)}")

    def _report(self, folder: str, asked: dict[str, str]) -> dict[str, Any]:
        since, until = asked.get("since") or SINCE, asked.get("until") or "now"
        against = asked.get("against", "")
        if against not in AGAINST:
            raise ToolError(f"against: expected one of {join_names(AGAINST[1:])}, got {show(against)}")
        wanted = Asked(read_period(since, until), against, asked.get("stat", ""), asked.get("class", ""), asked.get("alert", ""))
        wanted.check()
        report = self.evidence.report(folder, wanted, picture=_locate)
        inspected = self.inspector if folder == name_folder(self.model) else ""
        return {**report, "live": True, "since": since, "inspector": inspected or None}

    def _find_model(self, wanted: str) -> str:
        models = self.evidence.models()
        if not models:
            raise ToolError(
                f"{self.evidence.store.to}: no evidence is kept here yet; the key `evidence` of an archive turns it on"
            )
        folder = name_folder(wanted or self.model) if wanted or self.model else models[0]
        if folder in models or (not wanted and len(models) == 1):
            return folder if folder in models else models[0]
        near = find_nearest(folder, models, 1)
        raise ToolError(f"no evidence of a model {show(folder)}; {f'did you mean {near[0]}?' if near else join_names(models)}")

    def _give(self, what: str, folder: str, name: str) -> Reply:
        """Gives a picture to be shown, or the file that the client had sent."""
        record = self._read(folder, name)
        picture = record.picture
        if picture.kind == "none":
            raise EvidenceError("no picture was kept of this one")
        headers = {"x-content-type-options": "nosniff", "content-disposition": "attachment"}
        if what == "files" and picture.file:
            return Reply(200, "application/octet-stream", picture.file, headers)
        return Reply(200, "image/jpeg", picture.jpeg, headers if what == "files" else {"x-content-type-options": "nosniff"})

    def _find(self, folder: str, name: str) -> Entry:
        entry = Entry.of(f"{folder}/{name[:4]}-{name[4:6]}-{name[6:8]}/{name}{ENDING}", 0)
        if entry is None or folder != name_folder(folder):
            raise EvidenceError(f"no record is called {show(name)}")
        return entry

    def _read(self, folder: str, name: str) -> Record:
        return read_record(self.evidence.store, self._find(folder, name))

    def _mark(self, body: bytes, who: str) -> Reply:
        try:
            sent = json.loads(body)
            folder, name = str(sent["model"]), str(sent["name"])
            verdict, note = read_verdict(sent["verdict"], sent.get("note", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ToolError("expected a JSON object with model, name, verdict and note") from None
        entry = self._find(folder, name)
        record = read_record(self.evidence.store, entry)
        mark = add_mark(self.evidence.store, entry, verdict, note, who)
        with self._lock:
            self._marks[record.source.model, verdict] += 1
        return _write_json(mark.told)

    def _write_metrics(self) -> str:
        with self._lock:
            counts = dict(self._marks)
        named = {model: model for model in self.evidence.models()}
        models = {model for model, _ in counts} | {
            model for model in named if not any(name_folder(m) == model for m, _ in counts)
        }
        lines = [
            "# HELP camserve_evidence_marks_total Kept maps that people marked here, by what they said.",
            "# TYPE camserve_evidence_marks_total counter",
        ]
        for model in sorted(models):
            label = json.dumps(model, ensure_ascii=False)
            lines += [
                f'camserve_evidence_marks_total{{model_name={label},verdict="{verdict}"}} {counts.get((model, verdict), 0)}'
                for verdict in VERDICTS
            ]
        return "\n".join(lines) + "\n"

    def _describe(self, latest: list[Entry]) -> list[dict[str, Any]]:
        seen = self.evidence.shelf.read(latest)
        names = ("id", "time", "label", "confidence", "unusual", "request")
        return [{**{name: each.card[name] for name in names}, "picture": _locate(each)} for each in seen]


def _locate(seen: Seen) -> str | None:
    if not seen.card["seen"]:
        return None
    return f"{HOME}/pictures/{quote(seen.entry.model)}/{seen.entry.name}"


def _read_query(query: str) -> dict[str, str]:
    found = parse_qs(query, max_num_fields=20)
    unknown = [name for name in found if name not in OPTIONS]
    if unknown:
        near = find_nearest(unknown[0], OPTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected some of {join_names(OPTIONS)}"
        raise ToolError(f"no option {show(unknown[0])}; {hint}")
    return {name: values[-1] for name, values in found.items()}


def _write_json(value: object) -> Reply:
    return Reply(200, "application/json", json.dumps(value, allow_nan=False).encode())


def _refuse(status: int, message: str) -> Reply:
    kinds = {400: "InvalidOption", 404: "NotFound", 415: "UnsupportedFormat", 502: "Unreachable"}
    body = json.dumps({"code": status, "type": kinds[status], "message": message}).encode()
    return Reply(status, "application/json", body)
