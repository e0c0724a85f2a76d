"""The `camserve` command: `camserve package`, `serve`, `demo` and the others, each a module of `commands`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

import camserve
from camserve.core.errors import EXTRAS, require
from camserve.core.text import find_nearest, join_names
from camserve.tools.console import report_unforeseen

COMMANDS = {
    "package": "make an archive (.mar) of a model",
    "serve": "serve the archives of a model store",
    "explain": "explain many pictures, by a server or an archive",
    "explain_dataset": "explain a whole data set into Parquet, on one machine or many",
    "evidence": "show what was kept of watched predictions: the pictures behind an alert",
    "inspector": "the inspector page, for a server that wants a token",
    "reference": "measure good pictures, and write what is normal into an archive",
    "inspect_model": "list what can be explained in a model or an archive",
    "compare": "compare two archives on the same pictures",
    "doctor": "find what is wrong with a deployment",
    "demo": "package a real classifier, serve it, and explain a photograph",
}

PLACES = {
    "explain_dataset": "camserve.tools.reports.dataset.command",
    "evidence": "camserve.tools.watching.evidence.command",
}
"""Modules of commands that are not among the others, beside what they are made of."""

NEEDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "package": ("packaging", "serve", ()),
    "serve": ("serving", "serve", ("psutil", "rich", "yaml")),
    "explain": ("explaining many pictures", "serve", ("rich", "yaml")),
    "explain_dataset": ("explaining a data set", "ray", ("torch", "cv2", "yaml", "rich", "pyarrow")),
    "evidence": ("looking at evidence", "serve", ("cv2", "rich")),
    "reference": ("measuring pictures", "serve", ()),
    "inspect_model": ("inspecting a model", "serve", ()),
    "compare": ("comparing archives", "serve", ()),
    "doctor": ("the doctor", "serve", ("rich",)),
    "demo": ("the demo", "demo", (*EXTRAS["serve"], *EXTRAS["demo"])),
}
"""What a command does, the extra that brings what it needs, and the modules where those are not all of the extra's. The command
`inspector` needs none."""

UNFORESEEN = {"compare": 2, "doctor": 2}
"""The exit status after what a tool did not foresee, where 1 is a verdict; it is 1 elsewhere."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `argv` (by default the process's own arguments); returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"camserve {camserve.__version__}")
        return 0
    command, *rest = arguments[0].replace("-", "_"), *arguments[1:]
    if command not in COMMANDS:
        near = find_nearest(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {join_names(COMMANDS)}"
        print(f"error: no command {command}; {hint}", file=sys.stderr)
        return 2
    logging.getLogger("ts").setLevel(logging.ERROR)  # TorchServe warns of each optional accelerator that is not installed
    try:
        return _run(command, rest)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 what no tool foresaw, in one line
        return max(report_unforeseen(error), UNFORESEEN.get(command, 1))


def _run(command: str, arguments: Sequence[str]) -> int:
    if command in NEEDS:
        purpose, extra, modules = NEEDS[command]
        require(purpose, extra, *modules)
    return int(import_module(place_of(command)).main(arguments))


def place_of(command: str) -> str:
    """Returns the name of a command's module."""
    return PLACES.get(command, f"camserve.tools.commands.{command}")


def usage() -> str:
    """Returns the commands, one a line."""
    lines = [f"  {name:<15}{meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: camserve COMMAND ...", "", *lines, "", "camserve COMMAND --help says more."])


if __name__ == "__main__":
    sys.exit(main())
