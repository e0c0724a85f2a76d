#!/usr/bin/env python3
"""Serves the archives of a model store: `scripts/serve.py --help`."""

from _entry import run

run("serve")
