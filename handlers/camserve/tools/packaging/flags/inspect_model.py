"""The command line of `camserve inspect_model`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camserve.tools.console import TRUST, command_of
from camserve.tools.packaging.flags.keys import add_key_flags, read_keys
from camserve.tools.packaging.flags.model import (
    ModelFlags,
    add_class_flags,
    add_labels_flag,
    add_model_flags,
    add_weights_flag,
    add_weights_key_flag,
    read_model_flags,
)

DESCRIPTION = """What can be explained here? Lists the layers of a model or an archive that have a map, and what each costs.

With --image, draws that picture's heatmaps by layer and by method on one contact sheet. With --fidelity, measures on pictures
which layer and method tell the truth best.
"""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        model: which model or archive.
        trust: an archive's own code may run.
        keys: keys of the configuration.
        depth: levels of names to list.
        rounds: timed passes a layer.
        image: a picture for the contact sheet.
        every_layer: draw each listed layer.
        out: the contact sheet.
        fidelity: pictures and folders on which layers and methods are measured.
        report: the folder of the report.
    """

    model: ModelFlags
    trust: bool
    keys: Mapping[str, Any]
    depth: int
    rounds: int
    image: Path | None
    every_layer: bool
    out: Path
    fidelity: Sequence[str]
    report: Path


def parser() -> argparse.ArgumentParser:
    """The command line: the model first, then what is shown of it, and the configuration's keys, an archive's own by default."""
    parser = argparse.ArgumentParser(prog=command_of("inspect_model"), description=DESCRIPTION, allow_abbrev=False)
    parser.usage = "%(prog)s (ARCHIVE | MODEL [--weights FILE]) [--labels FILE] [--image FILE] [...]"
    model = parser.add_argument_group("the model, one of")
    model.add_argument("archive", nargs="?", type=Path, metavar="ARCHIVE", help="an archive, camserve's or another")
    model.add_argument("--trust", action="store_true", help=f"of an archive: {TRUST}")
    add_model_flags(model)
    add_class_flags(parser.add_argument_group("in the model's file"))
    weights = parser.add_argument_group("its weights", "without them torchvision's and timm's architectures have random ones")
    add_weights_flag(weights)
    add_weights_key_flag(weights)
    add_labels_flag(parser.add_argument_group("its classes"))
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--image", type=Path, metavar="FILE", help="a picture for the contact sheet")
    shown.add_argument("--out", type=Path, default=Path("out/layers.png"), metavar="FILE", help="the sheet (%(default)s)")
    shown.add_argument(
        "--fidelity",
        nargs="+",
        default=[],
        metavar="PICTURES",
        help="measure layers by methods on these pictures (files and folders), and say which is best by them",
    )
    shown.add_argument("--report", type=Path, default=Path("out/fidelity"), metavar="DIR", help="of that (%(default)s)")
    every = "draw each listed layer, not the last of each size of map only"
    shown.add_argument("--every-layer", action="store_true", help=every)
    shown.add_argument("--depth", type=int, default=2, metavar="N", help="levels of names to list (%(default)s)")
    shown.add_argument("--rounds", type=int, default=9, metavar="N", help="timed passes a layer (%(default)s)")
    add_key_flags(parser)
    return parser


def parse(argv: Sequence[str]) -> Options:
    """Reads the command line.

    Raises:
        ConfigError: a key of the configuration does not fit.
    """
    given = parser().parse_args(argv)
    untrained = (given.torchvision or given.timm) is not None and given.weights is None
    return Options(
        model=read_model_flags(given, random_weights=untrained),
        trust=given.trust,
        keys=read_keys(given),
        depth=given.depth,
        rounds=given.rounds,
        image=given.image,
        every_layer=given.every_layer,
        out=given.out,
        fidelity=given.fidelity,
        report=given.report,
    )
