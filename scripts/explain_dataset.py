#!/usr/bin/env python3
"""Explains a whole data set into Parquet: `scripts/explain_dataset.py --help`."""

from _entry import run

run("explain_dataset")
