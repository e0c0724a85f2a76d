#!/usr/bin/env python3
"""What can be explained in a model or an archive: `scripts/inspect_model.py --help`."""

from _entry import run

run("inspect_model")
