"""Reads the state dict in a file of weights, in whatever form a training script left it; nothing in the file is executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camserve.core.text import join_names
from camserve.tools.console import ToolError

StateDict = Mapping[str, Tensor]

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts keep the state dict in a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""

COUNTERS = ("n_averaged", "total_ops", "total_params")
"""The last part of names that are no weights: of `AveragedModel`, and of what counts a network's operations."""

AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|shadow)(?:$|[._\d])", re.IGNORECASE)
"""Names of averaged weights that a training script keeps beside the others."""

WAY_OUT = "where the model was trained, save torch.save(model.state_dict(), 'weights.pth') and give that file"

BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"numpy.{name}" for name in ("bool_", "bool", "float16", "float32", "float64", "str_")),
    *(
        f"{module}.{pure}{name}"
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for name in ("Path", "PosixPath", "WindowsPath")
    ),
)
"""Objects that training scripts save beside weights, besides those that torch allows. None is built: see `Ignored`."""


class Ignored:
    """Stands for one of `BESIDE_WEIGHTS` while a file is read: takes what the file gives it, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> Ignored:
        """An empty object, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """Keeps nothing."""


def read_state_dict(path: Path, key: str | None = None) -> tuple[StateDict, list[str]]:
    """Reads a file's state dict; nothing in the file is executed. Also returns what was taken off to get at it, and left aside.

    Args:
        key: the entry of a checkpoint that is used, or a prefix that ends in a dot: the names that begin with it. Entries of
            entries are named with a dot between. None: the usual entry, or the only one that is a state dict.

    Raises:
        ToolError: no such file, a damaged one, one that holds anything but a state dict or a checkpoint of one, or of several
            where nothing tells which.
    """
    notes: list[str] = []
    held: Any
    if _is_safetensors(path):
        held = _load_safetensors(path)
        notes.append(f"{path.name} is in the format safetensors, and goes into the archive as a state dict")
    else:
        held = _load(path)
    state = _choose(held, key, path, notes)
    while prefix := next((each for each in PREFIXES if _all_begin(state, each)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"the prefix {prefix} was taken off every name in {path.name}")
    return state, notes


def is_counter(name: str) -> bool:
    """Says whether a name is one of `COUNTERS`, of the whole model or of a module."""
    return name.rpartition(".")[2] in COUNTERS


def is_averaged(name: str) -> bool:
    """Says whether an entry or a prefix is called as averaged weights (EMA, SWA) are."""
    return AVERAGED.search(name) is not None


def _all_begin(state: Mapping[str, object], prefix: str) -> bool:
    names = [name for name in state if not is_counter(name)]
    return bool(names) and all(name.startswith(prefix) for name in names)


def _choose(held: Any, key: str | None, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The state dict in what a file holds; `notes` then says which entry that is, and what stands beside it."""
    if key is not None:
        return _take(held, key, path, notes)
    if _is_state_dict(held):
        return _without_plain(held, notes)
    entries = _find_networks(held)
    usual = [each for each in CHECKPOINT_KEYS if isinstance(held, Mapping) and _is_state_dict(held.get(each))]
    plain = [each for each in entries if not is_averaged(each)]
    chosen = usual[:1] or (plain if len(plain) == 1 else []) or (list(entries) if len(entries) == 1 else [])
    if not chosen and entries:
        raise ToolError(
            f"{path} holds several state dicts ({', '.join(entries)}), and nothing tells which is the model's; "
            f"--weights-key {next(iter(entries))} chooses one"
        )
    if not chosen:
        what = f"a dictionary of {join_names(map(str, held), 5)}" if isinstance(held, Mapping) else type(held).__name__
        raise ToolError(f"{path} holds no state dict but {what}; {WAY_OUT}")
    notes.append(f"{path.name} is a checkpoint: its entry {chosen[0]} is used")
    beside = [each for each in entries if each != chosen[0]]
    for words, names in (
        ("averaged weights", [each for each in beside if is_averaged(each)]),
        ("other weights", [each for each in beside if not is_averaged(each)]),
    ):
        if names:
            notes.append(f"{path.name} also holds {words} ({', '.join(names)}); --weights-key {names[0]} takes those")
    return _without_plain(held[chosen[0]] if chosen[0] in held else entries[chosen[0]], notes)


def _take(held: Any, key: str, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The entry that was asked for."""
    entries = _find_networks(held)
    found = held[key] if isinstance(held, Mapping) and _is_state_dict(held.get(key)) else entries.get(key)
    if found is not None:
        notes.append(f"{path.name}: its entry {key} is used, as asked")
        return _without_plain(found, notes)
    if key.endswith("."):
        whole = held if _is_state_dict(held) else next((held[each] for each in CHECKPOINT_KEYS if each in held), {})
        under = {name.removeprefix(key): value for name, value in whole.items() if str(name).startswith(key)}
        if under:
            notes.append(f"{path.name}: the names that begin with {key} are used, as asked")
            return _without_plain(under, notes)
    there = f"it holds {', '.join(entries)}" if entries else "it is a state dict itself, or holds none"
    raise ToolError(f"--weights-key {key}: {path} holds no such state dict; {there}")


def _find_networks(held: Any, depth: int = 2) -> dict[str, dict[str, Tensor]]:
    """The entries of a checkpoint, and those of its entries, that are state dicts of networks: something in them is a matrix."""
    found: dict[str, dict[str, Tensor]] = {}
    if not isinstance(held, Mapping) or _is_state_dict(held):
        return found
    for name, value in held.items():
        if _is_state_dict(value):
            if any(isinstance(each, Tensor) and each.ndim > 1 for each in value.values()):
                found[str(name)] = value
        elif depth > 1:
            found |= {f"{name}.{inner}": each for inner, each in _find_networks(value, depth - 1).items()}
    return found


def _is_state_dict(value: object) -> bool:
    """Says whether this is a mapping of names to tensors, numbers and words among them or not."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    tensors = sum(_is_weight(name, each) for name, each in value.items())
    plain = sum(each is None or isinstance(each, (bool, int, float, str, Ignored)) for each in value.values())
    return tensors > plain and tensors + plain == len(value)


def _is_weight(name: str, value: object) -> bool:
    """Says whether this is a tensor, or part of a quantized layer, which torch packs with a type and its bias."""
    return isinstance(value, Tensor) or ("_packed_params" in name and isinstance(value, (torch.dtype, tuple)))


def _without_plain(state: Mapping[str, Any], notes: list[str]) -> dict[str, Tensor]:
    """The tensors among what is held; a state dict without anything else keeps its own type, and its modules' versions."""
    others = [name for name, value in state.items() if not _is_weight(name, value)]
    if not others:
        return state  # type: ignore[return-value]
    notes.append(f"left out, since they are no tensors: {', '.join(others)}")
    return {name: value for name, value in state.items() if name not in others}


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as opened:
            if any(name.endswith("/constants.pkl") for name in opened.namelist()):
                raise ToolError(f"{path} is a TorchScript archive; {WAY_OUT}")
    try:
        with path.open("rb") as file, _allowing(BESIDE_WEIGHTS):  # by its path, torch 2.15 would go by the name's ending
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


@contextmanager
def _allowing(names: Sequence[str]) -> Iterator[None]:
    """Has torch read these objects, as `Ignored`, within the block."""
    before = torch.serialization.get_safe_globals()
    stand_ins: list[Any] = []
    for each in names:
        module, _, name = each.rpartition(".")
        stand_ins.append(type(name, (Ignored,), {"__module__": module}))
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*before, *stand_ins])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before))


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
