"""How an archive's configuration has its model run: in half precision, channels last, compiled. Each explains as the plain one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.build import PLAIN, archive, encoded, noise
from tests.support.comparison.closeness import assert_close, error_of_half, error_of_sum, unscaled
from tests.support.processes.worker import load_monitored

from camserve.capture.runtimes.engines import ENGINES, is_installed
from camserve.core.errors import ConfigError
from camserve.tools.archive.archive import Row, ask, handler_of, load_service

pytestmark = pytest.mark.numeric

PICTURE = encoded(noise(80, 64, 3))
ERRORS = {"float32": error_of_sum(3 * 8 * 8), "float16": error_of_half("float16"), "bfloat16": error_of_half("bfloat16")}
"""Of a map: a cell of it is one convolution's sum."""


def answer(service: Any) -> dict[str, Any]:
    """One explanation."""
    (response,) = ask(service, [Row({"body": PICTURE}, explain=True)])
    assert response.status == 200, response.body
    found: dict[str, Any] = json.loads(response.body)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the archive answers in float32, contiguous, not compiled."""
    return answer(load_service(archive(tmp_path_factory.mktemp("modes") / "plain", {**PLAIN, "channels_last": False})))


def close(found: dict[str, Any], wanted: dict[str, Any], error: float) -> None:
    """The same class, and probability and map within `error`."""
    (one,), (other,) = found["explanations"], wanted["explanations"]
    assert one["target"] == other["target"]
    assert one["probability"] == pytest.approx(other["probability"], abs=error)
    map_, wanted_map = (unscaled(each["heatmap"], each["range"]) for each in (one, other))
    assert_close(map_, wanted_map, error)


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_precision_and_memory_format(tmp_path: Path, plain: dict[str, Any], precision: str, channels_last: bool) -> None:
    """Half precision moves probabilities and maps by what it rounds, the memory format by the order in which sums are made."""
    explain = {**PLAIN, "precision": precision, "channels_last": channels_last}
    service = load_service(archive(tmp_path / "own", explain))
    handler = handler_of(service)
    assert handler.face.backend.channels_last is channels_last
    found = answer(service)
    close(found, plain, ERRORS[precision])
    assert (found["explanations"][0]["heatmap"] != plain["explanations"][0]["heatmap"]) or precision == "float32"


def test_a_model_that_torchserve_compiles(tmp_path: Path, plain: dict[str, Any]) -> None:
    """`pt2: {compile: ...}`: the archive loads, predictions and explanations run compiled, and both are the plain model's."""
    settings = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    service = load_service(archive(tmp_path / "own", {**PLAIN, "channels_last": False}, settings=settings))
    handler = handler_of(service)
    assert handler.face.backend.compiled
    assert handler.face.metadata["runtime"]["name"] == "compile"
    close(answer(service), plain, ERRORS["float32"])
    (response,) = ask(service, [Row({"body": PICTURE})])
    predictions = json.loads(response.body)
    for label, probability in plain["predictions"].items():
        assert predictions[label] == pytest.approx(probability, abs=ERRORS["float32"])


@pytest.mark.parametrize("pt2", ["nope", {"compile": {"enable": True, "backend": "nope"}}, {"backend": "nope"}], ids=str)
def test_a_compilation_that_torchserve_gives_up_stops_the_load(tmp_path: Path, pt2: object) -> None:
    """TorchServe warns and goes on without; whoever asked for it would not know."""
    with pytest.raises(ConfigError, match=r"pt2: TorchServe could not compile the model with .*nope"):
        load_service(archive(tmp_path / "own", settings={"pt2": pt2}))


@pytest.mark.parametrize("pt2", [{"compile": {"enable": False}}, {"export": {"aot_compile": False}}], ids=str)
def test_what_does_not_ask_for_a_compilation(tmp_path: Path, pt2: object) -> None:
    """Switched off, or about something else."""
    service = load_service(archive(tmp_path / "own", settings={"pt2": pt2}))
    assert not handler_of(service).face.backend.compiled


def test_a_compiled_model_is_watched_as_any_other(tmp_path: Path) -> None:
    """A watched prediction needs the layer, which the compiled model gives."""
    settings = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    explain = {key: value for key, value in PLAIN.items() if key != "monitor"}
    handler = handler_of(load_monitored(archive(tmp_path / "own", explain, settings=settings)))
    assert handler.face.metadata["compiled"]
    assert handler.face.metadata["monitor"] is not None
    handler.face.observer.close()


@pytest.mark.parametrize("runtime", [name for name in ENGINES if is_installed(name)])
def test_a_runtime_answers_as_torch_does(tmp_path: Path, plain: dict[str, Any], runtime: str) -> None:
    """With `runtime:` alone, and no graph in the archive, the graph is written at load; predictions and maps are torch's."""
    service = load_service(archive(tmp_path / "own", {**PLAIN, "channels_last": False, "runtime": runtime}))
    described = handler_of(service).face.metadata["runtime"]
    assert (described["name"], described["layers"], described["why"]) == (runtime, ["features"], "")
    close(answer(service), plain, ERRORS["float32"])


def test_a_compiled_archive_names_no_other_runtime(tmp_path: Path) -> None:
    """Both say what runs the model."""
    settings = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    with pytest.raises(ConfigError, match=r"runtime: openvino and pt2 are both given.*leave one out"):
        load_service(archive(tmp_path / "own", {**PLAIN, "runtime": "openvino"}, settings=settings))
