#!/usr/bin/env python3
"""Packages a real classifier, serves it, and explains a photograph: `scripts/demo.py --help`."""

from _entry import run

run("demo")
