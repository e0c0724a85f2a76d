"""Handlers run unchanged where TorchServe is not installed, and answer the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from tests.support import build
from tests.support.build import encoded, noise
from tests.support.models import nets
from tests.support.models.graphs import write_graph
from tests.support.processes.fork_server import ForkedWorkers

from camserve.hosts.child.__main__ import needs_torchserve
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import Answered, Asked, Worker, make_environment
from camserve.tools.packaging.contents.files import copy_package

BLOCKER = """
import importlib.machinery as machinery
original = machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    if name.partition(".")[0] == "captum":
        return None
    if name == "ts" and path is None:
        import sys
        return original(name, [each for each in sys.path if "site-packages" not in each], target)
    return original(name, path, target)
machinery.PathFinder.find_spec = staticmethod(find_spec)
"""
"""Hides TorchServe and captum from a process, as if they were not installed."""

OWN = """
from ts.torch_handler.image_classifier import ImageClassifier
from torchvision import transforms
class Own(ImageClassifier):
    image_processing = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(48), transforms.ToTensor()])
    def postprocess(self, data):
        return [{"own": each} for each in super().postprocess(data)]
"""
STOCK = """
from ts.torch_handler.image_classifier import ImageClassifier
class Stock(ImageClassifier):
    topk = 3
"""
OURS = """
from gradcam_handler import GradCAMHandler
class Mine(GradCAMHandler):
    def postprocess(self, data):
        return [{"mine": each} for each in super().postprocess(data)]
"""
FUNCTIONS = """
def initialize(context):
    assert context.system_properties["gpu_id"] is None
def handle(data, context):
    context.set_response_status(201, "Created", 0)
    context.set_response_header(0, "x-own", "1")
    context.metrics.add_counter("Own", 1)
    return [sorted(row) for row in data]
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What hides TorchServe from a process."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def with_torchserve() -> Iterator[ForkedWorkers]:
    """Workers that find TorchServe."""
    with ForkedWorkers() as workers:
        yield workers


@pytest.fixture(scope="module")
def without_torchserve(hidden: dict[str, str]) -> Iterator[ForkedWorkers]:
    """Workers that do not."""
    with ForkedWorkers(hidden) as workers:
        yield workers


def answers(directory: Path, batch: Sequence[Asked], workers: ForkedWorkers) -> tuple[list[Answered], list[str]]:
    """What a worker answers, and what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        workers.replace_workers(patch)
        return ask(directory, batch, make_environment(1))


def ask(directory: Path, batch: Sequence[Asked], environment: Mapping[str, str]) -> tuple[list[Answered], list[str]]:
    """What a worker of this environment answers, and what it prints."""
    lines: list[str] = []
    worker = Worker(Hosted("m", "1.0", "m.mar", directory, batch_size=8), None, environment, lines.append)
    try:
        worker.wait_ready()
        return worker.ask(batch, 60), lines
    finally:
        worker.end(5)


@pytest.mark.parametrize("handler", [OWN, STOCK, OURS, FUNCTIONS], ids=["own steps", "stock", "ours", "functions"])
def test_a_handler_answers_alike_without_torchserve(
    tmp_path: Path, handler: str, with_torchserve: ForkedWorkers, without_torchserve: ForkedWorkers
) -> None:
    """The same bytes for predictions, explanations and errors, with TorchServe's modules and with their stand-in."""
    directory = build.archive(
        tmp_path / "m", classes=6, labels={str(index): f"class {index}" for index in range(6)}, handler=handler
    )
    shutil.copy(copy_package(directory), directory)
    picture = {"body": encoded(noise())}
    batch: list[Asked] = [(picture, {"explain": "False"}), (picture, {"explain": "False", "x-other": "1"})]
    if handler == OURS:
        batch += [(picture, {"explain": "True", "accept": "image/png"}), ({"body": bytearray(b"no")}, {"explain": "True"})]

    real, _ = answers(directory, batch, with_torchserve)
    standing_in, lines = answers(directory, batch, without_torchserve)

    assert standing_in == real
    assert {status for status, *_ in real} == ({200, 400} if handler == OURS else {200 + (handler == FUNCTIONS), 200}), real
    assert not any("captum" in line for line in lines)


def test_a_worker_imports_nothing_large_that_its_archive_does_not_need(tmp_path: Path, hidden: dict[str, str]) -> None:
    """Neither torchvision nor what it brings, 140 MB in all; the stock handler's transforms are made when they are asked for."""
    told = "import sys; print('imported', [each for each in ('torchvision', 'torch._dynamo', 'sympy') if each in sys.modules])"
    directory = build.archive(tmp_path / "m", classes=6, fault=told)
    copy_package(directory)

    _, lines = ask(directory, [({"body": encoded(noise())}, {"explain": "True"})], make_environment(1) | hidden)

    assert {line.partition("imported")[2] for line in lines if "imported" in line} == {" []"}


def test_a_graph_answers_alike_without_torchserve(
    tmp_path: Path, with_torchserve: ForkedWorkers, without_torchserve: ForkedWorkers
) -> None:
    """TorchServe makes a session of an ONNX graph; camserve's handler runs the graph itself, with both."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ours = (build.HANDLERS / "gradcam_handler.py").read_text()  # by another name, for which TorchServe is taken where it is there
    directory = build.archive(tmp_path / "m", {"resize": nets.SIDE, "crop": nets.SIDE}, classes=nets.CLASSES, handler=ours)
    write_graph(nets.net("deep"), directory / "net.onnx", nets.pictures(2))
    manifest = directory / "MAR-INF" / "MANIFEST.json"
    read = json.loads(manifest.read_text())
    del read["model"]["modelFile"]
    read["model"]["serializedFile"] = "net.onnx"
    manifest.write_text(json.dumps(read))
    copy_package(directory)
    batch: list[Asked] = [({"body": encoded(noise())}, {"explain": explain}) for explain in ("False", "True")]

    real, _ = answers(directory, batch, with_torchserve)
    standing_in, _ = answers(directory, batch, without_torchserve)

    assert standing_in == real
    assert [status for status, *_ in real] == [200, 200]


@pytest.mark.parametrize(
    ("handler", "module", "needed"),
    [
        ("gradcam_handler", "import torch", False),
        ("gradcam_handler.py", "tsx = 1\nfrom tsx import y", False),
        ("gradcam_handler", "from ts.metrics.dimension import Dimension", True),
        ("gradcam_handler", "    import ts", True),
        ("mine", "", True),
    ],
)
def test_the_stand_in_serves_archives_that_want_no_more_of_torchserve(
    tmp_path: Path, handler: str, module: str, needed: bool
) -> None:
    """Those of our own handler, unless another module of theirs imports TorchServe's."""
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": {"handler": handler}}))
    (tmp_path / "gradcam_handler.py").write_text("from ts.torch_handler.image_classifier import ImageClassifier")
    (tmp_path / "model.py").write_text(module)
    assert needs_torchserve(tmp_path) is needed
