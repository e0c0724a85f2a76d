"""What an explanation costs in openvino_xai (ReciproCAM, inserted into the graph), over its own prediction.

    python benchmarks/speed/openvino_peer.py export resnet18 /tmp/graphs           # in camserve's environment
    python -m venv .venv-xai && .venv-xai/bin/pip install openvino-xai onnx
    .venv-xai/bin/python benchmarks/speed/openvino_peer.py measure /tmp/graphs/*.onnx

openvino_xai 1.1 wants OpenVINO 2024.4 and NumPy 1, so it is measured in an environment of its own, each pass against the same
graph's without the branch, in turns. One picture a pass: the branch asks the rest of the network once for each cell, as a batch.
It takes a minute for each network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 15
PASSES = 5


def export(name: str, folder: Path) -> None:
    """Write a torchvision model with random weights as an ONNX graph for one picture."""
    import torch  # noqa: PLC0415 the peer's environment has none
    import torchvision  # noqa: PLC0415

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(model, (torch.randn(1, 3, 224, 224),), folder / f"{name}.onnx", opset_version=17, dynamo=False)


def measure(path: Path) -> dict[str, Any]:
    """Milliseconds of a prediction and of an explanation of all classes, and their ratio: median and quartiles."""
    import numpy as np  # noqa: PLC0415
    import openvino  # noqa: PLC0415 camserve's environment has another one
    from openvino_xai import Task, insert_xai  # noqa: PLC0415
    from openvino_xai.common.parameters import Method  # noqa: PLC0415

    core = openvino.Core()
    plain = core.read_model(path)
    more = insert_xai(core.read_model(path), task=Task.CLASSIFICATION, explain_method=Method.RECIPROCAM)
    requests = [core.compile_model(each, "CPU").create_infer_request() for each in (plain, more)]
    picture = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    taken: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for place, request in enumerate(requests):
            begun = time.perf_counter()
            for _ in range(PASSES):
                request.infer([picture])
            taken[place].append(1000 * (time.perf_counter() - begun) / PASSES)
    ratios = [explaining / predicting for predicting, explaining in zip(*(each[1:] for each in taken), strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    shape = list(requests[1].get_output_tensor(1).shape)
    return {
        "model": path.stem,
        "predicting": statistics.median(taken[0][1:]),
        "explaining": statistics.median(taken[1][1:]),
        "over": {"median": median, "low": low, "high": high},
        "maps": shape,
        "openvino": openvino.__version__,
    }


def main() -> int:
    """Exports or measures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    exporting = steps.add_parser("export")
    exporting.add_argument("model")
    exporting.add_argument("folder", type=Path)
    measuring = steps.add_parser("measure")
    measuring.add_argument("graphs", nargs="+", type=Path)
    options = parser.parse_args()
    if options.step == "export":
        export(options.model, options.folder)
    else:
        for path in options.graphs:
            print(json.dumps(measure(path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
