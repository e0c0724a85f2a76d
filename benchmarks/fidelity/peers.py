"""How far camserve's maps and those of other libraries are from the papers' equations, on the same activations and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import captum.attr
import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tests.support.comparison import oracle
from torch import nn

from benchmarks.fidelity.games import method
from benchmarks.fidelity.scenes import LAYER, Classifier, Pixels, prepared

Map = NDArray[np.float64]
Peer = Callable[[nn.Module, Pixels, int], Map]


def _torch_cam(name: str) -> Peer:
    def made(network: nn.Module, pixels: Pixels, target: int) -> Map:
        with getattr(torchcam.methods, name)(network, LAYER) as extractor:
            scores = network(prepared([pixels]).requires_grad_())
            return np.asarray(extractor(target, scores, normalized=False)[0][0].detach().double())

    return made


def _pytorch_grad_cam(name: str) -> Peer:
    def made(network: nn.Module, pixels: Pixels, target: int) -> Map:
        layer = network.get_submodule(LAYER)
        pictures = prepared([pixels]).requires_grad_()
        with getattr(pytorch_grad_cam, name)(network, [layer]) as extractor:
            extractor(pictures, [ClassifierOutputTarget(target)])
            held = extractor.activations_and_grads
            activations, gradients = held.activations[0].numpy(), held.gradients[0].numpy()
            found = extractor.get_cam_image(pictures, layer, [ClassifierOutputTarget(target)], activations, gradients, False)
        return np.maximum(found[0], 0).astype(np.float64)

    return made


def _captum(network: nn.Module, pixels: Pixels, target: int) -> Map:
    explainer = captum.attr.LayerGradCam(network, network.get_submodule(LAYER))
    found = explainer.attribute(prepared([pixels]), target, relu_attributions=True)
    return np.asarray(found[0, 0].detach().double())


PEERS: Mapping[str, Mapping[str, Peer]] = {
    "gradcam++": {"pytorch-grad-cam": _pytorch_grad_cam("GradCAMPlusPlus"), "torch-cam": _torch_cam("GradCAMpp")},
    "gradcam": {"pytorch-grad-cam": _pytorch_grad_cam("GradCAM"), "torch-cam": _torch_cam("GradCAM"), "captum": _captum},
    "hirescam": {"pytorch-grad-cam": _pytorch_grad_cam("HiResCAM")},
    "layercam": {"pytorch-grad-cam": _pytorch_grad_cam("LayerCAM"), "torch-cam": _torch_cam("LayerCAM")},
    "xgradcam": {"pytorch-grad-cam": _pytorch_grad_cam("XGradCAM"), "torch-cam": _torch_cam("XGradCAM")},
}
"""By the method, which libraries have it."""

LIBRARIES = ("camserve", "pytorch-grad-cam", "torch-cam", "captum")


def errors(classifier: Classifier, pixels: Pixels, target: int) -> dict[str, dict[str, float]]:
    """For each method and library the largest difference between its heatmap, scaled to [0, 1], and the oracle's.

    The oracle computes the papers' equations in float64, position by position, from the activations and gradients of autograd
    through the whole network.
    """
    kept: list[torch.Tensor] = []
    handle = classifier.network.get_submodule(LAYER).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    scores = classifier.network(prepared([pixels]).requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[0, target], kept[0])
    activation, slope = kept[0][0].detach().numpy(), gradient[0].numpy()
    seen = classifier.seen(pixels)
    found = {}
    for name, peers in PEERS.items():
        exact = oracle.heatmap(oracle.MAPS[name](activation, slope))
        maps = {"camserve": method(name)(seen, target).double().numpy()}
        maps |= {library: peer(classifier.network, pixels, target) for library, peer in peers.items()}
        found[name] = {library: float(np.abs(oracle.heatmap(each) - exact).max()) for library, each in maps.items()}
    return found
