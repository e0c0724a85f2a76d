"""A model with its weights, as packaging and `inspect_model` take it from wherever it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camserve.tools.console import ToolError

if TYPE_CHECKING:  # torch takes seconds, and a command's help does without it
    from torch import nn


@dataclass(frozen=True)
class ModelSource:
    """A model with its weights, and what is known about it.

    Attributes:
        model_file: the file that defines its class. None: `weights` is a whole program, TorchScript or `torch.export`'s.
        preprocessing: keys of the configuration.
        labels: one name a class.
        weights: the user's file where it is a plain state dict: the archive then holds it as it is, under the same checksum.
        licensed: the distributions whose files or weights the archive carries.
        generated: packaging wrote `model_file`, which needs only torchvision.
        notes: what the user should hear.
        stored_as: the weights' name in the archive, where it is not to be packaging's own.
        requires: modules that `model_file` imports and the archive's requirements name where it cannot carry them; of a graph,
            those that read and run it.
        unprepared: why pictures cannot be prepared as they were for the training, unless the user says how; empty: they can.
        beside: a folder whose modules `model_file` imports, where that is not its own.
    """

    model_file: Path | None
    model: nn.Module
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    weights: Path | None = None
    licensed: tuple[str, ...] = ()
    generated: bool = False
    notes: tuple[str, ...] = ()
    stored_as: str | None = None
    requires: tuple[str, ...] = ()
    unprepared: str = ""
    beside: Path | None = None

    @property
    def label_mapping(self) -> dict[str, str] | None:
        """The labels as `index_to_name.json` has them."""
        return None if self.labels is None else {str(index): label for index, label in enumerate(self.labels)}

    def choose_keys(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration's keys: those that are asked for beat the model's own.

        Raises:
            ToolError: nothing tells how pictures were prepared for the training.
        """
        if self.unprepared and not ({"mean", "std"} <= set(asked) and {"resize", "crop"} & set(asked)):
            raise ToolError(f"{self.unprepared}; or say how with --resize, --crop, --interpolation, --mean and --std")
        return {**self.preprocessing, **asked}
