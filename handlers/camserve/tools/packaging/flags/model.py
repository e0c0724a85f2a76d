"""The flags that say which model: its files, its weights and its labels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camserve.tools.console import ToolError
from camserve.tools.packaging.models.demo import DEMO, load_demo
from camserve.tools.packaging.models.source import ModelSource


@dataclass(frozen=True)
class ModelFlags:
    """Which model a command line names; one of the first nine is given.

    Attributes:
        torchvision: an architecture's name.
        timm: an architecture's name.
        transformers: a folder that `save_pretrained` wrote.
        model_file: a Python file that defines the model.
        torchscript: a file of `torch.jit.save`.
        exported: a file of `torch.export.save`.
        onnx: a file with an ONNX graph.
        archive: an archive, whether it explains already or not.
        demo: the demo's model.
        weights: a state dict, or a checkpoint that holds one.
        random_weights: torchvision's or timm's architecture stays untrained.
        labels: a file that names the classes.
        weights_key: which entry of a checkpoint, or which prefix of its names.
        class_name: the class in the model's file, or the function that builds the model.
        model_args: what that, or timm's architecture, is called with.
    """

    torchvision: str | None = None
    timm: str | None = None
    transformers: Path | None = None
    model_file: Path | None = None
    torchscript: Path | None = None
    exported: Path | None = None
    onnx: Path | None = None
    archive: Path | None = None
    demo: bool = False
    weights: Path | None = None
    random_weights: bool = False
    labels: Path | None = None
    weights_key: str | None = None
    class_name: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def default_name(self) -> str:
        """What the model is called where no flag names it: by its architecture, its file or its folder."""
        if self.transformers:
            return self.transformers.resolve().name
        file = self.model_file or self._program or self.archive
        return DEMO if self.demo else self.torchvision or self.timm or (file.stem if file else "")

    @property
    def _program(self) -> Path | None:
        """The file that holds the model as a whole program."""
        return self.torchscript or self.exported or self.onnx

    def check(self) -> None:
        """Refuses flags that do not go together.

        Raises:
            ToolError: none or several name a model, or the weights do not go with it.
        """
        programs = [self.torchscript, self.exported, self.onnx]
        named = [self.torchvision, self.timm, self.transformers, self.model_file, *programs, self.archive]
        if sum(each is not None for each in named) + self.demo != 1:
            raise ToolError(
                "give one of ARCHIVE, --torchvision ARCH, --timm ARCH, --transformers FOLDER, --model-file FILE, "
                "--torchscript FILE, --exported FILE, --onnx FILE and --demo"
            )
        if self.model_file and not self.weights:
            raise ToolError("--model-file needs --weights FILE: a state dict, torch.save(model.state_dict(), FILE)")
        if (self.weights or self.random_weights) and not (self.torchvision or self.timm or self.model_file):
            flag = "--weights" if self.weights else "--random-weights"
            raise ToolError(f"{flag} goes with --torchvision, --timm or --model-file; others bring their own")
        if self.weights_key is not None and not self.weights:
            raise ToolError("--weights-key says which entry of a checkpoint is used, so it goes with --weights FILE")
        if self.class_name and not self.model_file:
            raise ToolError("--class goes with --model-file")
        if self.model_args and not (self.model_file or self.timm):
            raise ToolError("--model-args goes with --model-file or --timm")

    def check_files(self) -> None:
        """Refuses files that are not there before the work begins; what is in them is looked at when they are read.

        Raises:
            ToolError: a flag names a file that does not exist, or a folder.
        """
        for name in ("model_file", "weights", "torchscript", "exported", "onnx", "labels"):
            path: Path | None = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            if path and not path.exists():
                raise ToolError(f"{flag}: there is no file {path}")
            if path and path.is_dir():
                raise ToolError(f"{flag}: {path} is a folder, not a file")
        if self.transformers and not self.transformers.is_dir():
            raise ToolError(f"--transformers: there is no folder {self.transformers}")

    def load(self, workdir: Path, stage: Path, progress: bool = False) -> ModelSource:
        """Loads the model, where it is none of an archive.

        Args:
            workdir: where a model's file is written for torchvision's.
            stage: holds further files that a model's file may import.
            progress: show a bar while weights are downloaded.

        Raises:
            ToolError: it cannot be loaded.
            ConfigError: a program of torch.export that this torch cannot read.
        """
        # torch takes seconds, and a command's help does without it
        from camserve.tools.packaging.models.files import load_model_file, load_onnx, load_program  # noqa: PLC0415
        from camserve.tools.packaging.models.libraries.architectures import load_architecture  # noqa: PLC0415
        from camserve.tools.packaging.models.libraries.timm_models import TimmWeights, load_timm  # noqa: PLC0415
        from camserve.tools.packaging.models.libraries.transformers_models import load_transformers  # noqa: PLC0415

        if self.demo:
            return load_demo()
        if self.torchvision:
            return load_architecture(
                self.torchvision, workdir, self.weights, self.random_weights, progress=progress, weights_key=self.weights_key
            )
        if self.timm:
            weights = TimmWeights(self.weights, self.weights_key, self.random_weights)
            return load_timm(self.timm, workdir, weights, self.model_args)
        if self.transformers:
            return load_transformers(self.transformers, workdir)
        if self.model_file and self.weights:
            return load_model_file(
                self.model_file,
                self.weights,
                stage,
                workdir=workdir,
                weights_key=self.weights_key,
                name=self.class_name,
                arguments=self.model_args,
            )
        if self._program is None:
            raise ToolError("no flag names a model to load")
        return (load_onnx if self.onnx else load_program)(self._program, workdir)


def add_model_flags(group: Any) -> None:
    """Adds a flag for each way to give a model to a parser or a group."""
    group.add_argument("--torchvision", metavar="ARCH", help="a classifier of torchvision's, such as resnet50")
    group.add_argument("--timm", metavar="ARCH", help="a classifier of timm's, such as convnext_tiny.in12k")
    folder = "a folder that save_pretrained wrote: architecture, weights, labels and preprocessing"
    group.add_argument("--transformers", metavar="FOLDER", type=Path, help=folder)
    group.add_argument("--model-file", metavar="FILE", type=Path, help="a Python file that defines the model")
    group.add_argument("--torchscript", metavar="FILE", type=Path, help="a TorchScript file, scripted or traced")
    group.add_argument("--exported", metavar="FILE", type=Path, help="a program that torch.export.save wrote")
    group.add_argument("--onnx", metavar="FILE", type=Path, help="an ONNX graph, whose tensors are the layers")
    group.add_argument("--demo", action="store_true", help="EfficientNet-Lite0 with its ImageNet weights")


def add_class_flags(group: Any) -> None:
    """Adds `--class` and `--model-args` to a parser or a group."""
    named = "the class in the model's file, or the function that builds the model (the only one that is no part of another)"
    group.add_argument("--class", dest="class_name", metavar="NAME", help=named)
    wanted = "what it is called with, a JSON object: '{\"num_classes\": 5}'"
    group.add_argument("--model-args", metavar="JSON", type=_read_arguments, default={}, help=wanted)


def _read_arguments(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a JSON object such as '{{\"num_classes\": 5}}', got {text!r}: {error}"
        ) from None
    if not isinstance(read, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"num_classes\": 5}}', got {text!r}")
    return read


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def add_weights_flag(group: Any) -> None:
    """Adds `--weights` to a parser or a group."""
    group.add_argument("--weights", metavar="FILE", type=Path, help="a state dict, or a checkpoint that holds one")


def add_weights_key_flag(group: Any) -> None:
    """Adds `--weights-key` to a parser or a group."""
    wanted = "the entry of a checkpoint that is used (the usual one, or the only one), or a prefix of names, with its dot"
    group.add_argument("--weights-key", metavar="KEY", help=wanted)


def add_labels_flag(group: Any) -> None:
    """Adds `--labels` to a parser or a group."""
    forms = '{"0": "tench", ...}, {"tench": 0, ...}, a list, one name a line, or a config.json with id2label'
    group.add_argument("--labels", metavar="FILE", type=Path, help=forms)


def read_model_flags(options: argparse.Namespace, *, random_weights: bool) -> ModelFlags:
    """Reads the flags of the functions above, and `archive`, from a parsed command line."""
    return ModelFlags(
        torchvision=options.torchvision,
        timm=options.timm,
        transformers=options.transformers,
        model_file=options.model_file,
        torchscript=options.torchscript,
        exported=options.exported,
        onnx=options.onnx,
        archive=options.archive,
        demo=options.demo,
        weights=options.weights,
        random_weights=random_weights,
        labels=options.labels,
        weights_key=options.weights_key,
        class_name=options.class_name,
        model_args=options.model_args,
    )
