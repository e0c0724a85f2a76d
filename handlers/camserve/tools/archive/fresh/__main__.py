"""The programs of this folder, by its path: neither `camserve` nor what lies beside it can be imported by what they load.

    needs RESULT REQUEST                 which modules a model's file needs
    explain RESULT DIRECTORY PICTURE     one explanation from an unpacked archive

Each writes its findings as JSON to RESULT.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

NAME = "camserve_fresh"
"""The package's name in a process of its own, where there must be no `camserve` but the archive's."""


def main(arguments: Sequence[str]) -> None:
    """Runs one of the two programs."""
    program, output, *rest = arguments
    result = getattr(importlib.import_module(f"{NAME}.{program}"), program)(*rest)
    Path(output).write_text(json.dumps(result))


package = ModuleType(NAME)
package.__path__ = [str(Path(__file__).parent)]
sys.modules[NAME] = package
if __name__ == "__main__":
    main(sys.argv[2:])
