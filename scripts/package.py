#!/usr/bin/env python3
"""Packages a model: `scripts/package.py --help`."""

from _entry import run

run("package")
