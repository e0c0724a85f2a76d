"""Checks Serve configuration files in .venv-ray: `schema.py < JSON`, a list of texts; what is wrong with each, as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from camserve.core.errors import ConfigError
from camserve.hosts.ray.application import ARGUMENTS, check_models


def complain(given: Any) -> list[str]:
    """By Ray Serve's own schema, and by what `build` takes."""
    try:
        (application,) = ServeDeploySchema.model_validate(given).applications
        arguments = application.args
        for name, options in arguments.get("models", {}).items():
            DeploymentSchema.model_validate({"name": name, **options})
        check_models(arguments.get("models", {}), [each.partition("=")[0] for each in arguments["archives"]])
    except (ValidationError, ConfigError) as error:
        return [str(error)]
    module, _, name = application.import_path.partition(":")
    found = [] if hasattr(importlib.import_module(module), name) else [f"import_path: {application.import_path}"]
    return found + [f"args: {each}" for each in arguments if each not in ARGUMENTS]


if __name__ == "__main__":
    json.dump([complain(yaml.safe_load(each)) for each in json.load(sys.stdin)], sys.stdout)
