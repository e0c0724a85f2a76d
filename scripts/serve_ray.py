#!/usr/bin/env python3
"""Serves archives on Ray Serve, as `scripts/serve.py --host ray` does: `scripts/serve_ray.py --help`."""

from _entry import run

run("serve", "--host", "ray")
