"""What tests of the doctor's checks share: answers of a server, and a finding among others."""

from __future__ import annotations

import requests

from camserve.monitoring.metrics import METRICS
from camserve.tools.watching.finding import Finding
from camserve.tools.watching.server_checks import Get


def one(findings: list[Finding], words: str) -> Finding:
    """The only finding that says this."""
    (found,) = [finding for finding in findings if words in finding.message]
    return found


DECLARED = "".join(f"# HELP {metric.name} ...\n# TYPE {metric.name} {metric.kind.lower()}\n" for metric in METRICS)
"""What the metrics address lists before anything is counted: what is declared."""


def answering(status: int, text: str) -> Get:
    """A server that gives one answer to everything."""
    answer = requests.Response()
    answer.status_code, answer._content, answer.encoding = status, text.encode(), "utf-8"
    return lambda _: answer
