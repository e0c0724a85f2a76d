#!/usr/bin/env python3
"""Serves the inspector page for a server that wants a token: `scripts/inspector.py --help`."""

from _entry import run

run("inspector")
