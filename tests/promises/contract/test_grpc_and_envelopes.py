"""gRPC asks for an explanation by an input; an envelope around the handler is refused before it fails every request."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import ts
from tests.support.build import archive, encoded, noise
from tests.support.processes.waiting import HANG
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import ModelLoaderFactory

from camserve.core.errors import ConfigError
from camserve.protocol.parser import read_call
from camserve.tools.archive.archive import load_service
from camserve.tools.commands.serve import Server, main
from camserve.tools.serving.configuration.addresses import Settings
from camserve.tools.serving.process.errors import ServeError

ROOT = Path(__file__).resolve().parents[3]
KSERVE = ROOT / ".venv-kserve" / "bin" / "python"
MODEL = "hostile"
PICTURE = bytes(encoded(noise()))
ASK = """
import sys, json, base64, grpc
def length(n):
    out = b""
    while n > 127: out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])
def field(number, value): return bytes([number << 3 | 2]) + length(len(value)) + value
address, model, inputs = sys.argv[1], sys.argv[2], json.load(sys.stdin)
message = field(1, model.encode())
for name, value in inputs.items(): message += field(3, field(1, name.encode()) + field(2, base64.b64decode(value)))
with grpc.insecure_channel(address) as channel:
    call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
    answer = call(message, timeout=600)
size, at = 0, 1
for shift in range(0, 70, 7):
    size, at = size | (answer[at] & 127) << shift, at + 1
    if answer[at - 1] < 128: break
sys.stdout.buffer.write(answer[at : at + size])
"""
"""TorchServe's messages are written and read by hand: its package brings no classes for them."""


def ask(server: Server, **inputs: bytes) -> Any:
    """The answer of `Predictions`, by grpcio, as JSON."""
    given = json.dumps({name: base64.b64encode(value).decode() for name, value in inputs.items()})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(KSERVE), "-c", ASK, server.grpc_address, MODEL],
        input=given.encode(),
        capture_output=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.live
@pytest.mark.skipif(not KSERVE.exists(), reason="needs .venv-kserve: scripts/test.sh makes it")
def test_grpc_explains_where_the_inputs_say_so(live: Server) -> None:
    """The same answer as over HTTP, with options as inputs; without `explain`, or where it is false, the prediction."""
    plain = requests.post(f"{live.url}/predictions/{MODEL}", data=PICTURE, timeout=HANG).json()
    assert ask(live, data=PICTURE) == plain
    assert ask(live, data=PICTURE, explain=b"false", target=b"1") == plain
    headers = {"X-Explain-Target": "[2, 1]", "X-Explain-Method": "gradcam"}
    wanted = requests.post(f"{live.url}/explanations/{MODEL}", data=PICTURE, headers=headers, timeout=HANG).json()
    assert ask(live, data=PICTURE, explain=b"true", target=b"[2, 1]", method=b"gradcam") == wanted
    body = json.dumps({"instances": [{"data": {"b64": base64.b64encode(PICTURE).decode()}}]}).encode()
    assert set(ask(live, body=body, explain=b"True")) == {"predictions", "explanations"}
    assert ask(live, data=PICTURE, explain=b"maybe")["type"] == "UnknownOption"
    assert ask(live, data=PICTURE, explain=b"true", traget=b"1")["type"] == "UnknownOption"


@pytest.mark.parametrize(
    ("row", "headers", "explain", "left"),
    [
        ({"data": b"x", "explain": b"true"}, {"data": {"content-type": ""}, "explain": {"content-type": ""}}, True, {"data"}),
        ({"data": b"x", "explain": bytearray(b" TRUE ")}, {}, True, {"data"}),
        ({"data": b"x", "explain": b"false"}, {}, False, {"data"}),
        ({"data": b"x", "explain": b"1"}, {}, True, {"data", "explain"}),
        ({"data": b"x"}, {}, False, {"data"}),
        ({"data": b"x", "explain": b"true"}, {"explain": "False", "Host": "a"}, False, {"data", "explain"}),
        ({"data": b"x", "explain": b"true"}, {"Host": "a"}, False, {"data", "explain"}),
    ],
)
def test_only_grpc_s_inputs_ask_for_explanations(
    row: dict[str, Any], headers: dict[str, Any], explain: bool, left: set[str]
) -> None:
    """Over HTTP the route says it, whatever a form holds."""
    call = read_call(row, headers)
    assert (call.explain, set(call.fields)) == (explain, left)


@pytest.mark.parametrize(
    "line", ["service_envelope=kserve", "service_envelope : json", "service_envelope kservev2", "service_envelope=body"]
)
def test_a_server_with_an_envelope_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """It would be ready, and answer 503 to everything."""
    path = tmp_path / "c.properties"
    path.write_text(line)
    with pytest.raises(ServeError, match="remove it; camserve reads KServe's bodies itself"):
        Settings.read(path)
    assert main(["--model-store", str(tmp_path), "--config", str(path), "--log-dir", str(tmp_path)]) == 1
    assert "service_envelope=" in capsys.readouterr().err
    path.write_text("service_envelope=\n")
    Settings.read(path)


@pytest.mark.parametrize("envelope", ["kserve", "kservev2", "json", "body"])
def test_a_handler_in_an_envelope_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, envelope: str) -> None:
    """As plain TorchServe would load it, whatever its configuration; without one it loads."""
    folder = archive(tmp_path / "tiny")
    load_service(folder)
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    loader = ModelLoaderFactory.get_model_loader()
    with pytest.raises(ConfigError, match=f"service_envelope={envelope}: remove it from TorchServe's configuration"):
        loader.load("tiny", str(folder), "gradcam_handler.py", None, 1, envelope, metrics_cache=metrics)
