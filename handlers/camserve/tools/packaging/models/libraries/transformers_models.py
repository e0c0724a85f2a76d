"""Loads an image classifier from a folder that transformers' `save_pretrained` wrote."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from camserve.core.config import INTERPOLATIONS
from camserve.core.errors import require
from camserve.core.text import in_one_line, join_names
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.libraries.preparation import Geometry, Preparation, match_preparation
from camserve.tools.packaging.models.source import ModelSource

TEMPLATE = '''\
"""transformers' {name}, without weights, as its config.json describes it; TorchServe then loads the archive's into it."""

from transformers import {config_name}, {name}

CONFIG = {config!r}


class Model:
    """The architecture."""

    def __new__(cls):
        """The module."""
        model = {name}({config_name}.from_dict(CONFIG))
{more}        return model
'''

FLIP = """\
        # its image processor hands over blue, green, red
        model.register_forward_pre_hook(lambda _, given: (given[0].flip(1), *given[1:]))
"""

PROCESSOR = "preprocessor_config.json"


def load_transformers(folder: Path, workdir: Path) -> ModelSource:
    """Loads architecture, weights, labels and preprocessing from a folder, as transformers itself does; nothing is downloaded.

    Args:
        workdir: where the file that builds the model is written.

    Raises:
        ToolError: the folder holds no image classifier of transformers', or its weights do not fit.
    """
    require("--transformers", "transformers")
    with quiet():
        model = _load_model(folder)
        processor, fault = find_processor(folder)
    config = model.config
    prepared = prepare_as_transformers(processor, config) if processor else Preparation(fault=fault)
    described = {key: value for key, value in json.loads(config.to_json_string(use_diff=True)).items() if key not in _LEFT_OUT}
    described["num_labels"] = config.num_labels
    name, config_name = type(model).__name__, type(config).__name__
    more = FLIP if prepared.flipped else ""
    model_file = workdir / f"transformers_{config.model_type.replace('-', '_')}.py"
    model_file.write_text(TEMPLATE.format(name=name, config_name=config_name, config=described, more=more), "utf-8")
    if prepared.flipped:
        model.register_forward_pre_hook(lambda _, given: (given[0].flip(1), *given[1:]))
    notes = [f"{folder}: {name}, {config.num_labels} classes"]
    notes += ["Its image processor hands over blue, green, red; the archive's model turns them round"] if prepared.flipped else []
    scores = find_scores(config)
    notes += tell_scores(scores)
    return ModelSource(
        model_file,
        model.eval(),
        {**prepared.keys, **scores},
        find_transformers_labels(config),
        notes=(*notes, *([prepared.note] if prepared.note else [])),
        requires=("transformers", *(("timm",) if config.model_type == "timm_wrapper" else ())),
        unprepared=prepared.fault,
    )


_LEFT_OUT = (
    *("id2label", "label2id", "problem_type", "architectures"),
    *("dtype", "torch_dtype", "transformers_version", "_name_or_path"),
)


def _import(name: str = "transformers") -> Any:
    """The library, or a module of it: an extra, untyped, which takes seconds to load."""
    return importlib.import_module(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' bars and warnings away: what matters is said in the notes, or refused."""
    logging = _import("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_model(folder: Path) -> Any:
    transformers = _import()
    if not (folder / "config.json").is_file():
        raise ToolError(
            f"--transformers {folder}: it holds no config.json; give a folder that model.save_pretrained(FOLDER) wrote"
        )
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ToolError(
            f"--transformers {folder}: its config.json is not one of transformers' own: {in_one_line(error)}"
        ) from error
    mapped = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.values()
    known = {each.__name__ for group in mapped for each in (group if isinstance(group, tuple) else (group,)) if each}
    wanted = [name for name in config.architectures or [] if name in known]
    if not wanted:
        named = join_names(config.architectures or ["no architecture"])
        raise ToolError(
            f"--transformers {folder}: it holds {named}, which is no image classifier of transformers "
            f"{transformers.__version__} (their names end in ForImageClassification); code that lies in the folder is not run"
        )
    try:
        model, found = getattr(transformers, wanted[0]).from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise ToolError(f"--transformers {folder}: its weights do not load: {in_one_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ToolError(
            f"--transformers {folder}: the weights lack {len(missing)} of {wanted[0]}'s tensors ({', '.join(missing[:3])}), "
            "which would be random; save the trained classifier with model.save_pretrained(FOLDER)"
        )
    return model.float()


def load_as_transformers(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Loads weights by the names under which transformers saves them, which may be others than a module's own.

    Returns:
        Whether they fit; where they do not, the model is left as it was.
    """
    inner: Any = find_pretrained(model)
    if inner is None:
        return False
    with quiet():
        try:
            loaded, found = type(inner).from_pretrained(
                None, config=inner.config, state_dict=dict(state), output_loading_info=True
            )
        except Exception:  # noqa: BLE001 the names are simply others, as will be said
            return False
    whole = len(model.state_dict()) == len(inner.state_dict())
    if not whole or any(found[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return False
    inner.load_state_dict(loaded.float().state_dict())
    return True


def find_pretrained(model: nn.Module) -> Any:
    """The one outermost module of transformers' in a model; None where there are none or several."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        ancestors = [kind.__module__.partition(".")[0] + "." + kind.__name__ for kind in type(module).__mro__]
        inside = any(name.startswith(f"{outer}." if outer else "") for outer, _ in found)
        if "transformers.PreTrainedModel" in ancestors and not inside:
            found.append((name, module))
    return found[0][1] if len(found) == 1 else None


def find_processor(folder: Path) -> tuple[Any, str]:
    """The image processor of a folder; or None, and why there is none."""
    transformers = _import()
    if not (folder / PROCESSOR).is_file() and not (folder / "processor_config.json").is_file():
        return None, (
            f"{folder} holds no {PROCESSOR}, so nothing tells how pictures were prepared for the training: save it with "
            "AutoImageProcessor.from_pretrained(BASE).save_pretrained(FOLDER)"
        )
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True), ""
    except Exception as error:  # noqa: BLE001 it is another library's code
        return None, f"the image processor in {folder} does not load: {in_one_line(error)}"


def find_default_processor(config: Any) -> Any:
    """The image processor that transformers makes for an architecture without further ado, for pictures of the model's size."""
    transformers = _import()
    try:
        kinds = transformers.IMAGE_PROCESSOR_MAPPING[type(config)]
        kinds = list(kinds.values()) if isinstance(kinds, dict) else list(kinds) if isinstance(kinds, tuple) else [kinds]
        kind = next(each for each in kinds if each is not None)
        kind = getattr(transformers, kind) if isinstance(kind, str) else kind
        usual, side = kind(), getattr(config, "image_size", None)
        if not isinstance(side, int):
            return usual
        crop = {"crop_size": {"height": side, "width": side}} if getattr(usual, "crop_size", None) else {}
        sides = {name: side for name in ("height", "width", "shortest_edge") if dict(usual.size).get(name)}
        return kind(size=sides, **crop)
    except Exception:  # noqa: BLE001 it has none, or another of its own
        return None


def prepare_as_transformers(processor: Any, config: Any) -> Preparation:
    """Finds the keys that prepare pictures as an image processor does."""
    title = f"transformers' {type(processor).__name__}"

    def theirs(picture: Image.Image) -> Tensor:
        with quiet(), torch.no_grad():
            made: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"]
        return made[0].float()

    described = processor.to_dict()
    data = described.get("data_config") or getattr(processor, "data_config", None)
    if data:
        from camserve.tools.packaging.models.libraries.timm_models import match_timm_data  # noqa: PLC0415 an extra

        return match_timm_data(data, theirs, title)
    if getattr(config, "num_channels", 3) != 3:
        return Preparation(fault=f"{title}: the model takes {config.num_channels} channels")
    resample = described.get("resample")
    chosen = Image.Resampling(resample).name.lower() if isinstance(resample, int) else "bilinear"
    mean, std = (described.get(name) or () for name in ("image_mean", "image_std"))
    return match_preparation(
        theirs,
        _list_geometries(described),
        title,
        interpolation=chosen if chosen in INTERPOLATIONS else "bilinear",
        declared=(mean if isinstance(mean, (list, tuple)) else (), std if isinstance(std, (list, tuple)) else ()),
    )


def _list_geometries(described: Mapping[str, Any]) -> Iterator[Geometry]:
    """What the numbers in a processor's configuration may mean; a trial tells which."""
    sizes = [described.get(name) for name in ("size", "crop_size")]
    sides = [each for size in sizes for each in _sides_of(size)]
    shares = [described.get("crop_pct") or 1, 224 / 256]
    wholes: list[Any] = [*sides, *(int(side / share) for side in sides if isinstance(side, int) for share in shares)]
    crops: list[Any] = [None, *sides]
    for whole in dict.fromkeys(map(_frozen, [*wholes, *((side, side) for side in wholes if isinstance(side, int))])):
        for crop in dict.fromkeys(map(_frozen, crops)):
            yield {"resize": whole, "crop": crop}
    for side in sides:
        yield {"resize": side, "crop": None, "fit": "pad"}
    for crop in crops:
        yield {"resize": None, "crop": crop}


def _frozen(size: Any) -> Any:
    return tuple(size) if isinstance(size, (list, tuple)) else size


def _sides_of(size: Any) -> list[Any]:
    if isinstance(size, int):
        return [size]
    if not isinstance(size, Mapping):
        return []
    edges = [size[name] for name in ("shortest_edge", "longest_edge") if isinstance(size.get(name), int)]
    both = [(size["height"], size["width"])] if isinstance(size.get("height"), int) and isinstance(size.get("width"), int) else []
    return [*both, *(pair[0] for pair in both if pair[0] == pair[1]), *edges]


def find_transformers_labels(config: Any) -> list[str] | None:
    """The names in `id2label`; None where they are those that transformers makes up."""
    names = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    if not names or sorted(names) != list(range(len(names))) or all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    return [names[index] for index in sorted(names)]


def tell_scores(scores: Mapping[str, str]) -> list[str]:
    """Says which kind of scores was found."""
    return [f"Scores: {kind}, as the model's problem_type says; --scores says otherwise" for kind in scores.values()]


def find_scores(config: Any) -> dict[str, str]:
    """The kind of scores that `problem_type` says."""
    kinds = {"multi_label_classification": "sigmoid", "single_label_classification": "softmax", "regression": "none"}
    kind = kinds.get(getattr(config, "problem_type", None) or "")
    return {"scores": kind} if kind else {}
