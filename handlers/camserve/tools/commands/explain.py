"""Explains many pictures: overlays, one row of JSON for each picture, and a gallery to look through.

Asks a running server, or an archive without any server. A picture that fails becomes a row with its error. Run again, it goes
on where it stopped: a picture counts as done where its row has the same options, the same weights and, of an archive, the same
files; what differs is said, and explained anew. (A server's model is known by its answers, so it is asked once more for one
picture that is done.)
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.core.errors import RequestError
from camserve.core.values import FLAG, parse_integer
from camserve.protocol.options import OPTIONS, Option
from camserve.tools.client.annotations import ABOUT, Annotations
from camserve.tools.client.sources import AnswerSource, ServerSource, open_archive_source
from camserve.tools.client.token import open_token_file
from camserve.tools.console import TRUST, ToolError, command_of, fail
from camserve.tools.console import Progress as Steps
from camserve.tools.reports.globs import expand
from camserve.tools.reports.pictures import Say, describe_kind, list_folder
from camserve.tools.reports.run import Run

URL = "http://127.0.0.1:8080"
_ASKED = tuple(option for option in OPTIONS if option.name not in ("format", "overlay"))
"""Options that have a flag by their name. Answers are JSON, and hold overlays unless `--no-overlays` is given."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        pictures: names of files and folders, and globs.
        archive: explained in this process; None: a server is asked.
        url, model, token_file, timeout: of the server.
        jobs: how many pictures are in flight at a time.
        request: the request's options, by the contract's names.
        inside_file: the areas that pictures are asked about.
        out: the folder that is written to.
        again: explain again what is done already.
        trust: the archive's own code may run.
    """

    pictures: Sequence[str]
    archive: Path | None
    url: str | None
    model: str | None
    token_file: Path | None
    timeout: float
    jobs: int
    request: Mapping[str, Any]
    inside_file: Path | None
    out: Path
    again: bool
    trust: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Explains what `argv` names; 0 where every picture was explained, 1 where one failed or nothing could be asked."""
    options = parse(argv)
    steps = Steps()
    try:
        _check_flags(options)
        pictures = find_pictures(options.pictures, options.out, steps.note)
        options.out.mkdir(parents=True, exist_ok=True)
        with _open_source(options, steps) as source:
            areas = Annotations(options.inside_file).match(pictures) if options.inside_file else {}
            run = Run(source, options.out, {"model": source.name, **options.request}, areas)
            counts = run.explain(pictures, options.jobs, again=options.again)
    except (ToolError, OSError) as error:
        return fail(error)
    report(counts, run, steps)
    return 1 if counts["failed"] else 0


def parser() -> argparse.ArgumentParser:
    """The command line: who is asked first, limits last."""
    parser = argparse.ArgumentParser(prog=command_of("explain"), description=__doc__, allow_abbrev=False)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="pictures, folders (with all below them), or globs")
    who = parser.add_argument_group("who is asked")
    who.add_argument("--archive", type=Path, metavar="FILE", help="an archive (.mar), explained in this process")
    who.add_argument("--trust", action="store_true", help=f"with --archive, {TRUST}")
    who.add_argument("--url", help=f"or a server's root, or .../explanations/MODEL ({URL})")
    who.add_argument("--model", metavar="NAME", help="the model, or NAME/VERSION, where the URL does not name it")
    who.add_argument("--token-file", type=Path, metavar="FILE", help="holds the server's token, or is its key_file.json")
    what = parser.add_argument_group("what is asked")
    add_options(what)
    what.add_argument("--inside-file", type=Path, metavar="FILE", help=f"areas of several pictures: {ABOUT}")
    where = parser.add_argument_group("what is written")
    where.add_argument("--out", type=Path, default=Path("out/explanations"), metavar="DIR", help="where (%(default)s)")
    where.add_argument("--no-overlays", action="store_true", help="no pictures, neither as files nor in the gallery")
    where.add_argument("--again", action="store_true", help="explain again what is done already")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--jobs", type=_count, default=4, metavar="N", help="pictures in flight at a time (%(default)s)")
    limits.add_argument(
        "--timeout", type=_seconds, default=60, metavar="SECONDS", help="longest that a picture may take a server (%(default)g)"
    )
    return parser


def parse(argv: Sequence[str] | None) -> Options:
    """Reads the command line."""
    given = parser().parse_args(argv)
    request = {**read_options(given), **({} if given.no_overlays else {"overlay": True})}
    return Options(
        pictures=given.pictures,
        archive=given.archive,
        url=given.url,
        model=given.model,
        token_file=given.token_file,
        timeout=given.timeout,
        jobs=given.jobs,
        request=request,
        inside_file=given.inside_file,
        out=given.out,
        again=given.again,
        trust=given.trust,
    )


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds a flag for each option of a request but its format and its overlay."""
    for option in _ASKED:
        group.add_argument(f"--{option.name.replace('_', '-')}", **_flag(option))


def read_options(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that were given, by the contract's names."""
    return {option.name: value for option in _ASKED if (value := getattr(given, option.name)) is not None}


def _flag(option: Option) -> dict[str, Any]:
    """What argparse needs for an option of a request: its choices, or how its text is read, and its help."""
    if option.labels:
        return {"action": "append", "type": _parse_target, "metavar": "CLASS", "help": f"{option.meaning}; may be repeated"}
    if option.values is FLAG:
        return {"action": "store_const", "const": True, "help": option.meaning}
    if "enum" in option.values.schema:
        return {"choices": option.values.schema["enum"], "help": option.meaning}

    def read(text: str) -> Any:
        try:
            value = option.values.parse(text)
            option.values.read(value)
        except RequestError as error:
            raise argparse.ArgumentTypeError(error.message) from None
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"expected {option.values.accepts}, got {text!r}") from None
        return value  # as JSON has it

    metavar = {"integer": "N", "number": "NUMBER", "string": "NAME"}.get(option.values.schema.get("type", ""), "NUMBERS")
    return {"type": read, "metavar": metavar, "help": option.meaning}


def _parse_target(text: str) -> int | str:
    """Reads an index or a label; what begins with a `-` stays text: `-0` is what lowers the first value."""
    return text if text.startswith("-") else parse_integer(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1000, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def _check_flags(options: Options) -> None:
    """Refuses what asks a server beside an archive, where it would mean nothing, and areas in two places."""
    if options.inside_file and "inside" in options.request:
        raise ToolError("--inside-file says which area each picture is asked about; leave --inside out")
    for name in ("url", "model", "token_file"):
        if options.archive is not None and getattr(options, name) is not None:
            raise ToolError(f"--archive asks no server; leave --{name.replace('_', '-')} out")


@contextmanager
def _open_source(options: Options, steps: Steps) -> Iterator[AnswerSource]:
    if options.archive is None:
        yield ServerSource(options.url or URL, options.model, open_token_file(options.token_file), options.timeout)
        return
    with ExitStack() as stack:
        with steps.step(f"Load {options.archive}"):
            source = stack.enter_context(open_archive_source(options.archive, options.trust, steps.note))
        yield source


def find_pictures(names: Iterable[str], out: Path, say: Say | None = None) -> list[Path]:
    """Finds the pictures that names, folders and globs stand for, each once, without those in `out`.

    Args:
        say: told of what is left out of folders.

    Raises:
        ToolError: a name stands for nothing, or for what is no file.
    """
    pictures: dict[tuple[Path, str], Path] = {}
    written = out.resolve()
    for name in names:
        path = Path(name)
        if path.is_file():
            matches = [path]
        elif path.exists() and not path.is_dir():
            raise ToolError(f"{name}: expected a file, a folder or a glob, got {describe_kind(path)}")
        else:
            found = list_folder(path, say) if path.is_dir() else [each for each in expand(name) if each.is_file()]
            matches = [each for each in found if not each.resolve().is_relative_to(written)]
        if not matches:
            raise ToolError(f"{name}: there is no such file, and no picture in or under it")
        for each in matches:  # a folder can be reached by several names; links to one picture are pictures of their own
            pictures.setdefault((each.parent.resolve(), each.name), each)
    return list(pictures.values())


def report(counts: Counter[str], run: Run, steps: Steps) -> None:
    """Says how many were explained, why others failed, and where the results are."""
    steps.note(f"{counts['explained']} explained, {counts['done']} done before, {counts['failed']} failed")
    for difference, number in run.differences.most_common():
        steps.note(f"  done otherwise before, so asked for anew, {number} of them: {difference}")
    if len(run.models) > 1:
        steps.note(
            f"  warning: while this ran, several models answered: {_count_each(run.models)}; --again has one answer for all"
        )
    for rows in sorted(run.faults.values(), key=len, reverse=True):
        error, times = rows[0]["error"], f", {len(rows)} times, first" if len(rows) > 1 else ":"
        steps.note(f"  failed{times} {rows[0]['file']}: {error['type']}: {error['message']}")
    steps.note(f"  {run.journal.path}: one row a picture")
    steps.note(f"  {run.page}: to look through")


def _count_each(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {times} times" for name, times in counts.most_common())
