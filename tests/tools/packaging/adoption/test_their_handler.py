"""The handler of an archive that is served already: which are adopted, as what, and which are refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from ts.utils.util import list_classes_from_module

from camserve.tools.archive.fresh.modules import Beside
from camserve.tools.console import ToolError
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler, adopt_handler

IMPORTS = """
from ts.torch_handler.image_classifier import ImageClassifier
from gradcam_handler import GradCAMHandler
from PIL import Image
import base_handler, torch
"""
BASE = """
from ts.torch_handler.image_classifier import ImageClassifier
class Taking(ImageClassifier):
    def handle(self, data, context): return []
class Inferring(ImageClassifier):
    def inference(self, data): return data
class Explaining:
    def explain_handle(self, data, raw): return []
"""


def adopted(tmp_path: Path, text: str, name: str = "their_handler.py") -> AdoptedHandler:
    """What is made of a handler's file with this text."""
    stage, workdir = tmp_path / "stage", tmp_path / "work"
    for folder in (stage, workdir):
        folder.mkdir()
    (stage / "base_handler.py").write_text(BASE)
    (stage / "their_handler.py").write_text(IMPORTS + text)
    return adopt_handler(name, stage, workdir)


STOCK, OURS = "class Theirs(ImageClassifier): pass\n", "class Theirs(GradCAMHandler): pass\n"


@pytest.mark.parametrize("text", [STOCK, OURS])
@pytest.mark.parametrize("name", ["their_handler.py", "their_handler", "their_handler:absent", "their_handler.py:absent"])
def test_a_handler_is_found_as_torchserve_finds_it(tmp_path: Path, text: str, name: str) -> None:
    """With `.py` or without; what stands behind a colon counts where the file has such a function."""
    file = adopted(tmp_path, text, name).file
    assert file is not None
    assert file.name == ("explained_handler.py" if text == STOCK else "their_handler.py")
    assert file.parent.name == "work"


def test_stock_and_own_handlers_are_replaced_by_camserves(tmp_path: Path) -> None:
    """But not a file of theirs that has the stock one's name, which a worker would find first."""
    assert adopted(tmp_path, "", "image_classifier").file is None
    assert adopt_handler("gradcam_handler.py", tmp_path / "stage", tmp_path / "work").file is None
    (tmp_path / "stage" / "image_classifier.py").write_text(IMPORTS + STOCK)
    assert (
        adopt_handler("image_classifier", tmp_path / "stage", tmp_path / "work").file
        == tmp_path / "work" / "explained_handler.py"
    )


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "object_detector", "object_detector is none of image classification, nor a file of the archive; accepted is a file"),
        ("class Theirs: pass", "their_handler.py", "defines no image classifier .*; accepted is a file with one class"),
        (
            STOCK + "def run(data, context): pass",
            "their_handler:run",
            r"is the function run\(\) of their_handler\.py, which takes",
        ),
        (STOCK + "def run(data, context): pass", "their_handler.py:run", r"is the function run\(\) of their_handler\.py"),
        (
            OURS + "def run(data, context): pass",
            "their_handler:run",
            r"function run\(\) .* let its class Theirs answer: accepted",
        ),
        (STOCK + "def handle(data, context): pass", "their_handler.py", r"is the function handle\(\) of their_handler\.py"),
        (
            STOCK + "class Other(ImageClassifier): pass",
            "their_handler.py",
            "defines 2 image classifiers, Other or Theirs; accepted",
        ),
        ("import nosuch", "their_handler.py", "does not load: ModuleNotFoundError"),
    ],
)
def test_a_handler_that_cannot_be_taken_is_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    """It is said what came and what is accepted."""
    with pytest.raises(ToolError, match=message):
        adopted(tmp_path, text, name)


@pytest.mark.parametrize(
    ("bases", "step", "message"),
    [
        ("ImageClassifier", "handle", r"has a handle\(\) of its own, which takes the batch"),
        ("ImageClassifier", "inference", r"has inference\(\) of its own, which would never be called"),
        ("ImageClassifier", "explain_handle", r"has explain_handle\(\) of its own, which would never be called"),
        (
            "GradCAMHandler",
            "inference",
            r"has inference\(\) of its own, which would never be called: camserve runs the model itself",
        ),
        ("GradCAMHandler", "explain_handle", r"has explain_handle\(\) of its own, which would never be called"),
        ("base_handler.Taking", "", r"has a handle\(\) of its own, of Taking in base_handler, which takes the batch"),
        ("base_handler.Inferring", "", r"has inference\(\) of its own, of Inferring in base_handler, which would never"),
        ("base_handler.Explaining, ImageClassifier", "", r"explain_handle\(\) of its own, of Explaining in base_handler"),
        ("base_handler.Explaining, GradCAMHandler", "", r"explain_handle\(\) of its own, of Explaining in base_handler"),
    ],
)
def test_a_step_that_would_not_be_called_is_refused(tmp_path: Path, bases: str, step: str, message: str) -> None:
    """Wherever the handler has it from."""
    method = f"def {step}(self, data, context=None): return data" if step else "pass"
    with pytest.raises(ToolError, match=message):
        adopted(tmp_path, f"class Theirs({bases}):\n    {method}\n")


def test_a_handler_over_ours_that_takes_the_batch_is_called_as_before(tmp_path: Path) -> None:
    """What it does with the steps is its own; packaging's check sees whether it explains."""
    methods = (
        "    def handle(self, data, context): return super().handle(data, context)\n    def inference(self, data): return data\n"
    )
    assert adopted(tmp_path, f"class Theirs(GradCAMHandler):\n{methods}").file == tmp_path / "work" / "their_handler.py"


def test_a_function_over_ours_is_called_as_before(tmp_path: Path) -> None:
    """TorchServe calls a file's handle() rather than its class."""
    file = adopted(tmp_path, OURS + "one = Theirs()\ndef handle(data, context): return one.handle(data, context)\n").file
    assert file == tmp_path / "work" / "their_handler.py"


@pytest.mark.parametrize("base", ["ImageClassifier", "GradCAMHandler"])
def test_the_last_of_several_handlers_that_build_on_each_other_is_taken(tmp_path: Path, base: str) -> None:
    """TorchServe takes one class a file, so it gets one that holds this class alone."""
    text = f"class First({base}):\n    def postprocess(self, data): return data\nclass Second(First): pass\nclass Help: pass\n"
    file = adopted(tmp_path, text).file
    assert file == tmp_path / "work" / "explained_handler.py"
    with Beside([tmp_path / "work", tmp_path / "stage"], ()):
        (found,) = list_classes_from_module(importlib.import_module("explained_handler"))
    names = [each.__name__ for each in found.__mro__]
    assert names[:3] == ["ExplainedSecond", "Second", "First"]
    assert "GradCAMHandler" in names


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("    image_processing = staticmethod(lambda picture: torch.zeros(3, 40, 48))", (40, 48)),
        ("    def image_processing(self, picture): return torch.zeros(3, 40, 48)", (40, 48)),
        ("    pass", None),
    ],
)
def test_a_handlers_own_preprocessing_says_what_the_model_sees(tmp_path: Path, text: str, size: tuple[int, int] | None) -> None:
    """An attribute of the class or a method of it; None: the stock one."""
    found = adopted(tmp_path, f"class Theirs(ImageClassifier):\n{text}\n")
    assert (found.size, found.processing is None) == (size, size is None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "    def __init__(self):\n        super().__init__()\n        self.image_processing = lambda picture: torch.zeros(3, 4, 4)",
            "__init__",
        ),
        ("    image_processing = 3", "takes no picture: TypeError"),
    ],
)
def test_preprocessing_that_would_not_be_found_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """It says where it stands."""
    with pytest.raises(ToolError, match=f"image_processing.*{message}"):
        adopted(tmp_path, f"class Theirs(ImageClassifier):\n{text}\n")


@pytest.mark.parametrize("channels", [1, 4])
def test_preprocessing_may_make_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    """The model takes what its own handler makes."""
    step = f"    def image_processing(self, picture): return torch.zeros({channels}, 28, 30)"
    found = adopted(tmp_path, f"class Theirs(ImageClassifier):\n{step}\n")
    assert (found.channels, found.size) == (channels, (28, 30))


@pytest.mark.parametrize(
    ("text", "prepares"),
    [
        ("    image_processing = staticmethod(lambda picture: torch.zeros(3, 40, 48))", "image_processing"),
        ("    def preprocess(self, data): return torch.zeros(1, 3, 40, 48)", "preprocess"),
        ("    pass", ""),
    ],
)
def test_a_handler_is_known_by_its_class_and_by_what_prepares_pictures(tmp_path: Path, text: str, prepares: str) -> None:
    """Which packaging says of it."""
    found = adopted(tmp_path, f"class Theirs(ImageClassifier):\n{text}\n")
    assert (found.title, found.prepares) == ("their_handler.py's class Theirs", prepares)
