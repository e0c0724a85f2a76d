#!/usr/bin/env python3
"""Serves the archives of a model store: `scripts/serve.py --help`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("camserve") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "handlers"))

from camserve.tools.serve import main

if __name__ == "__main__":
    sys.exit(main())
