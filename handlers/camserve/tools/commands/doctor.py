"""Looks at a running server for the classic mistakes of a deployment, and says how to mend each.

Exit status 0 where nothing is wrong (advice does not count), 1 where something is, 2 where the server cannot be asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from camserve.tools.client.token import open_token_file
from camserve.tools.console import ToolError, command_of, fail
from camserve.tools.watching.endpoints import Endpoints
from camserve.tools.watching.finding import Finding
from camserve.tools.watching.server_checks import check_server


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the server that `argv` names; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        endpoints = Endpoints.of(options.url, options.management, options.metrics)
        findings = list(check_server(endpoints, _tokens(options.token_file)))
    except (ToolError, OSError, ValueError) as error:
        fail(error)
        return 2
    _print(findings)
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog=command_of("doctor"), description=__doc__, allow_abbrev=False)
    made.add_argument("url", metavar="URL", help="the server's inference address, http://127.0.0.1:8080")
    where = made.add_argument_group("where the server does not follow TorchServe's habit, or wants a token")
    where.add_argument("--management", metavar="URL", help="its management address (the port above)")
    where.add_argument("--metrics", metavar="URL", help="its metrics address (two ports above)")
    where.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token: TorchServe's key_file.json")
    return made


def _tokens(path: Path | None) -> dict[str, str]:
    """Reads the tokens, by TorchServe's names `inference` and `management`; a file that holds but one has it for both."""
    token = open_token_file(path)
    if path is None or token is None:
        return {}
    text = path.read_text("utf-8").strip()
    management = json.loads(text).get("management", {}).get("key", "") if text.startswith("{") else token()
    return {"inference": token(), "management": management}


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": "[green]ok     [/]", "advice": "[yellow]advice [/]", "wrong": "[red]wrong  [/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]} {escape(finding.message)}")
        if finding.remedy:
            console.print(f"        mend: {escape(finding.remedy)}", style="dim")


if __name__ == "__main__":
    raise SystemExit(main())
