#!/usr/bin/env python3
"""Writes the parts of docs/reference that the code's own tables say: docs/tools/tables.py

Each stands between two markers; what is around them is written by hand. `tests/promises/project/test_docs.py` holds them
to the code.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 118
CODE, HELD = re.compile("`[^`]+`"), "\u2007"  # no line ends within code
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "handlers"))

from camserve.core.config import KEYS, defaults  # noqa: E402
from camserve.protocol.options import OPTIONS  # noqa: E402
from camserve.tools.cli import COMMANDS, place_of  # noqa: E402
from camserve.tools.packaging.flags.keys import RECORDED  # noqa: E402

MORE = {
    "layers": "Without it the layer is found by running the model; `--layer NAME`, repeatable, is the same flag.",
    "method": "`finercam` is another name of `contrast`. `refinecam` takes two `layers` or more.",
    "channels": "Grey pictures of 16 bits are fed in full depth.",
    "resize": "`fit` says what an integer means for a picture of another shape.",
    "fit": "`pad` resizes the longer side and pads the rest (a letterbox; timm's `border`).",
    "scale": "255 for means of the range 0 to 255; 2048 with `mean: 1024` for X-ray models that take -1024 to 1024.",
    "mean": "0 where `channels` is not 3. It must not exceed `scale`.",
    "std": "1 where `channels` is not 3.",
    "scores": "See [Scores](../understand/scores.md).",
    "output": "See [Scores](../understand/scores.md#several-outputs).",
    "random_weights": "`--random-weights` writes it, and the page and the doctor say so.",
    "exif": "TIFF's own orientation is always applied, as in the stock handler.",
    "fast_jpeg": "Scores change a little: "
    "[Photographs of many megapixels](../how-to/programs.md#photographs-of-many-megapixels).",
    "formats": "`avif` (Pillow 11.3), `heic` (extra `heic`) and `dicom` (extra `dicom`; uncompressed, one frame, by its "
    "window) only where they are listed.",
    "max_checks": "0: none.",
    "checks": "At most `max_checks` of a batch: with more targets or pictures, raise it. See [checks](../understand/check.md).",
    "max_work": "Reading, decoding and drawing count, the smallest requests first.",
    "max_seconds": "What is left then gets a 503.",
    "channels_last": "`true` and null may also arrange convolutions' weights for oneDNN, which takes their memory again "
    "(twice for those of 1 x 1); `false` does not.",
    "memory_format": "On a CPU; `package.py` records it.",
    "runtime": "`package.py --runtime auto` measures and records: [Runtimes](../how-to/programs.md#a-faster-runtime).",
    "allowed_hosts": "`.example.com`: all below it. See [SECURITY.md](../../SECURITY.md#pages-of-other-sites).",
    "evidence": "The server forbids or forces it (`camserve_evidence`) and "
    "may say where (`camserve_evidence_to`). See [evidence](../how-to/evidence.md) and "
    "[SECURITY.md](../../SECURITY.md#evidence).",
    "monitor": "`true`: every prediction that the budget allows, exported every 15 s. See [Watch](../how-to/watch.md).",
}
"""What keys' own words leave out, for those who read the page."""

MORE_OF_OPTIONS = {
    "target": "In headers and form fields a decimal integer is an index, `[...]` a list; a JSON string is a label. A label "
    "is matched exactly, then whatever its case.",
    "top_k": "1, unless the archive's `threshold` decides.",
    "method": "See [the methods compared](../understand/methods.md).",
    "layer": "Several are a list, or in text names with commas between; their order says nothing, and without `method` they are "
    "for [`refinecam`](../understand/methods.md#several-layers-together).",
    "format": "By default what `Accept` prefers.",
    "inside": "Pixels are those of the answer's `image`; where the archive has `exif: true`, of the upright picture. What could "
    "be read in two ways is refused. In a form, a mask is a file: `-F inside=@mask.png`.",
    "contours": "Overlays and pictures show them as lines.",
    "check": "See [Is the heatmap borne out?](../understand/check.md)",
}


def paragraph(*sentences: str) -> str:
    """One paragraph, code and links kept in one piece, in lines of `WIDTH` at most."""
    text = CODE.sub(lambda code: code[0].replace(" ", HELD), " ".join(" ".join(sentences).split()))
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False).replace(HELD, " ")


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    return words[:1].upper() + words[1:].rstrip(".") + "."


def shown(value: Any) -> str:
    """A default, as YAML spells it."""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value).strip(chr(34))}`"


def configuration() -> str:
    """Every key: what it means, accepts and is by default, and its flag."""
    parts = []
    for name, default in defaults().items():
        key = KEYS[name]
        value = "found by running the model" if name == "layers" else shown(default)
        flag = "" if name in RECORDED else f" Flag: `--{name.replace('_', '-')}`."
        parts += [
            f"### {name}",
            paragraph(sentence(key.meaning), MORE.get(name, "")),
            paragraph(f"Accepts {key.values.accepts}. Default: {value}.{flag}"),
        ]
    return "\n\n".join(parts)


def options() -> str:
    """Every option of a request."""
    parts = []
    for option in OPTIONS:
        parts += [
            f"## {option.name}",
            paragraph(sentence(option.meaning), MORE_OF_OPTIONS.get(option.name, "")),
            paragraph(f"Accepts {option.values.accepts}."),
        ]
    return "\n\n".join(parts)


def commands() -> str:
    """Every command's own help."""
    parts = []
    with mock.patch.dict(os.environ, {"COLUMNS": "110"}):
        for name, meaning in COMMANDS.items():
            made = import_module(place_of(name)).parser()
            made.prog = f"camserve {name}"
            parts += [f"## {name}", f"{sentence(meaning)}", f"```text\n{made.format_help().rstrip()}\n```"]
    return "\n\n".join(parts)


PARTS = {"configuration": configuration, "options": options, "commands": commands}


def page(name: str) -> str:
    """A page of the reference as it should be."""
    text = (REFERENCE / f"{name}.md").read_text("utf-8")
    begin, end = f"<!-- {name}: begin; docs/tools/tables.py writes this -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{PARTS[name]()}\n\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    for each in PARTS:
        (REFERENCE / f"{each}.md").write_text(page(each), "utf-8")
