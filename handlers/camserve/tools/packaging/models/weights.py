"""Reads a file of weights, and says in a user's terms why weights do not fit a model."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camserve.core.text import find_nearest, join_names
from camserve.tools.console import ToolError

StateDict = Mapping[str, Tensor]

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts keep the state dict in a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""

WAY_OUT = "where the model was trained, save torch.save(model.state_dict(), 'weights.pth') and give that file"


def read_state_dict(path: Path) -> tuple[StateDict, list[str]]:
    """Reads a file's state dict; nothing in the file is executed. Also returns what was taken off to get at it.

    Raises:
        ToolError: no such file, a damaged one, or one that holds anything but a state dict or a checkpoint of one.
    """
    notes: list[str] = []
    state: Any
    if _is_safetensors(path):
        state = _load_safetensors(path)
        notes.append(f"{path.name} is in the format safetensors, and goes into the archive as a state dict")
    else:
        state = _load(path)
    if isinstance(state, Mapping) and not _is_state_dict(state):
        for key in CHECKPOINT_KEYS:
            if _is_state_dict(state.get(key)):
                state = state[key]
                notes.append(f"{path.name} is a checkpoint: its entry {key} is used")
                break
    if not _is_state_dict(state):
        held = f"a dictionary of {join_names(map(str, state), 5)}" if isinstance(state, Mapping) else type(state).__name__
        raise ToolError(f"{path} holds no state dict but {held}; {WAY_OUT}")
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"the prefix {prefix} was taken off every name in {path.name}")
    return state, notes


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as opened:
            if any(name.endswith("/constants.pkl") for name in opened.namelist()):
                raise ToolError(f"{path} is a TorchScript archive; {WAY_OUT}")
    try:
        with path.open("rb") as file:  # by its path, torch 2.15 would go by the name's ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ToolError(f"no file {path}") from None
    except IsADirectoryError:
        raise ToolError(f"{path} is a folder, not a file of weights") from None
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL ([\w.]+)", str(error))
        if kind is None:
            raise ToolError(f"{path} is not a file of weights that torch can read, or is damaged; {WAY_OUT}") from error
        raise ToolError(
            f"{path} holds Python objects besides tensors (the first is a {kind[1]}), and loading those would run code from "
            f"the file; {WAY_OUT}"
        ) from error
    except Exception as error:  # a damaged file makes torch raise anything
        raise ToolError(f"{path} is not a file of weights that torch can read; {WAY_OUT}") from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as that format does: the length of a header, and the header, which is JSON."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    torchs = start.startswith((b"PK", b"\x80"))  # a zip file or a pickle, whatever its name
    return (path.suffix == ".safetensors" and not torchs) or (
        start[4:] == b"\0\0\0\0{" and path.stat().st_size >= int.from_bytes(start[:8], "little")
    )


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 not one of camserve's own requirements
    except ImportError:
        line = f"torch.save(safetensors.torch.load_file({path.name!r}), {path.stem + '.pth'!r})"
        raise ToolError(
            f"{path} is in the format safetensors, which takes the package of that name: pip install safetensors; or, where it "
            f'is installed, write a state dict and give that file: python -c "import torch, safetensors.torch; {line}"'
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # a damaged file makes it raise exceptions of its own
        raise ToolError(f"{path} is not a file of safetensors, or is damaged ({error}); {WAY_OUT}") from error


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def load_into(model: nn.Module, state: StateDict, kind: str) -> None:
    """Loads `state` into `model`, which its user knows as `kind`.

    Raises:
        ToolError: tensors are missing, unknown or of another shape; all are counted and the first are named, unknown ones
            with the nearest name of the model's.
    """
    own = model.state_dict()
    shapes = [name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape]
    fitting = OrderedDict((name, state[name]) for name in state if name not in shapes)
    fitting._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]  # modules' versions
    result = model.load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in shapes]
    unknown = list(result.unexpected_keys)
    parts = [
        _part(missing, "{} the model's tensors missing", str),
        _part(unknown, "{} unknown to the model", lambda name: _with_nearest(name, missing or list(own))),
        _part(shapes, "{} of another shape", lambda name: f"{name}: {list(state[name].shape)}, not {list(own[name].shape)}"),
    ]
    if any(parts):
        raise ToolError(f"the weights do not fit {kind}: " + "; ".join(part for part in parts if part))


def _part(names: list[str], text: str, show: Callable[[str], str]) -> str:
    if not names:
        return ""
    what = text.format(f"{len(names)} of") if "model's" in text else text.format(len(names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} ({', '.join(show(name) for name in names[:3])}{more})"


def _with_nearest(name: str, names: list[str]) -> str:
    near = find_nearest(name, names, 1)
    return f"{name}, nearest {near[0]}" if near else name


def count_classes(state: StateDict, default: StateDict, classes: int) -> int:
    """Counts the classes of a fine-tuned state dict: the rows of the tensor that has `classes` rows in `default`.

    `default` is the architecture's own state dict, and may be on the meta device. Returns `classes` where no tensor, or
    tensors in several ways, differ in their number of rows.
    """
    rows = {
        int(tensor.shape[0])
        for name, tensor in state.items()
        if name in default and tensor.ndim and default[name].ndim == tensor.ndim
        and default[name].shape[0] == classes and default[name].shape[1:] == tensor.shape[1:]
    }  # fmt: skip
    return rows.pop() if len(rows) == 1 else classes
