#!/usr/bin/env python3
"""Finds what is wrong with a deployment: `scripts/doctor.py --help`."""

from _entry import run

run("doctor")
