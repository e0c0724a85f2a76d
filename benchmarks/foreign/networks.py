"""Small classifiers of other libraries with random weights, which behave as trained ones: nothing vanishes, no head is zero."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture import synthesize_pictures
from camserve.core.config import Config

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: `library: architecture`.
        side: of its pictures, in pixels.
        build: makes it, untrained.
        channels: of its pictures.
        mixes: whether each of its cells sees the whole picture at random weights, so that none says where a change was.
    """

    name: str
    side: int
    build: Callable[[], nn.Module]
    channels: int = 3
    mixes: bool = False

    @property
    def config(self) -> Config:
        """As its archive would have it; nothing is timed."""
        mean = {} if self.channels == 3 else {"mean": (0.5,) * self.channels, "std": (0.5,) * self.channels}
        return Config.from_mapping({"channels": self.channels, "channels_last": False, **mean})

    def pictures(self, count: int = 2, seed: int = 5) -> Tensor:
        """Pictures `[count, channels, side, side]`."""
        return synthesize_pictures((self.side, self.side), count, seed, self.config)

    def make(self) -> nn.Module:
        """The network in evaluation mode, the same each time."""
        torch.manual_seed(0)
        model = self.build().eval()
        enliven(model, self.pictures(4, seed=7))
        return model


SCALES = ("gamma", "lambda", "layer_scale", "layerscale")
"""Parts of the names of parameters that scale a residual branch, to almost nothing before training."""


def enliven(model: nn.Module, pictures: Tensor) -> None:
    """Give norms the statistics of these pictures, a head of zeros random weights, and residual branches their full part."""
    for name, parameter in model.named_parameters():
        if any(scale in name.lower() for scale in SCALES) and parameter.abs().max() < 1e-2:
            nn.init.ones_(parameter)
    for part in model.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)

    def learn(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean, norm.running_var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)) + 1e-3

    handles = [part.register_forward_pre_hook(learn) for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        model(pictures)
    for handle in handles:
        handle.remove()


def _timm() -> Iterator[Network]:
    timm = importlib.import_module("timm")

    def one(name: str, side: int, mixes: bool = False, **options: Any) -> Network:
        return Network(f"timm: {name}", side, lambda: timm.create_model(name, num_classes=CLASSES, **options), mixes=mixes)

    for name in ("resnet18", "regnety_002", "convnext_atto", "efficientnet_b0", "ghostnet_100", "mambaout_femto", "dla34"):
        yield one(name, 160)
    for name in ("eca_nfnet_l0", "fastvit_t8", "edgenext_xx_small", "repvit_m0_9", "starnet_s1", "pvt_v2_b0"):
        yield one(name, 160)
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convit_tiny", "cait_xxs24_224"):
        yield one(name, 96, img_size=96)
    for name in ("vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"):
        yield one(name, 98, img_size=98)
    for name in ("mvitv2_tiny", "twins_svt_small", "levit_128s", "pit_ti_distilled_224"):
        yield one(name, 224)
    for name in ("mixer_s32_224", "mobilevit_xxs"):
        yield one(name, 224, mixes=True)
    yield one("crossvit_9_240", 240)


def _transformers() -> Iterator[Network]:
    library = importlib.import_module("transformers")
    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}

    def one(kind: str, side: int = 96, mixes: bool = False, **options: Any) -> Network:
        def build() -> nn.Module:
            config = getattr(library, f"{kind}Config")(num_labels=CLASSES, **options)
            made: nn.Module = getattr(library, f"{kind}ForImageClassification")(config)
            return made

        return Network(f"transformers: {kind}", side, build, mixes=mixes)

    for kind in ("ViT", "DeiT", "ViTMSN", "Dinov2", "Dinov2WithRegisters", "Beit", "Data2VecVision", "IJepa"):
        yield one(kind, image_size=96, patch_size=16, **small)
    yield one("Swin", image_size=96, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=6)
    yield one("Swinv2", 96, image_size=96, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=6)
    yield one("ResNet", 96, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 2], layer_type="basic")
    yield one("ConvNext", 96, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 2, 1])
    yield one("ConvNextV2", 96, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 2, 1])
    yield one("RegNet", 96, embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 2, 1], groups_width=8)
    yield one("MobileNetV2", 160)
    yield one("Segformer", 160, depths=[1, 1, 1, 1])
    yield one("PvtV2", 160, depths=[1, 1, 1, 1])
    yield one("Pvt", 160, image_size=160, depths=[1, 1, 1, 2])
    yield one("PoolFormer", 160, depths=[1, 1, 2, 1])
    yield one("FocalNet", 96, image_size=96, embed_dim=24, depths=[1, 1, 2, 1])
    yield one("MobileViT", 128, mixes=True)
    yield one("SwiftFormer", 224)


def _others() -> Iterator[Network]:
    def from_(
        module: str, name: str, title: str, side: int, *args: Any, channels: int = 3, mixes: bool = False, **options: Any
    ) -> Network:
        def build() -> nn.Module:
            made: nn.Module = getattr(importlib.import_module(module), name)(*args, **options)
            return made

        return Network(title, side, build, channels, mixes)

    tokens: dict[str, Any] = {
        "image_size": 96,
        "patch_size": 16,
        "num_classes": CLASSES,
        "dim": 64,
        "depth": 4,
        "heads": 4,
        "mlp_dim": 128,
    }
    yield from_("vit_pytorch", "ViT", "vit_pytorch: ViT", 96, **tokens)
    yield from_("vit_pytorch", "ViT", "vit_pytorch: ViT, mean of tokens", 96, pool="mean", **tokens)
    yield from_("vit_pytorch", "SimpleViT", "vit_pytorch: SimpleViT", 96, **tokens)
    registers = "vit_pytorch.simple_vit_with_register_tokens"
    yield from_(registers, "SimpleViT", "vit_pytorch: SimpleViT with registers", 96, **tokens)
    yield from_("vit_pytorch.deepvit", "DeepViT", "vit_pytorch: DeepViT", 96, **tokens)
    convolutions: dict[str, Any] = {"n_conv_layers": 2, "kernel_size": 7, "stride": 2, "padding": 3}
    convolutions |= {"pooling_kernel_size": 3, "pooling_stride": 2, "pooling_padding": 1, "positional_embedding": "learnable"}
    sizes: dict[str, Any] = {
        "img_size": 96,
        "embedding_dim": 64,
        "num_layers": 3,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "num_classes": CLASSES,
    }
    yield from_("vit_pytorch.cct", "CCT", "vit_pytorch: CCT", 96, **sizes, **convolutions)
    yield from_("monai.networks.nets", "DenseNet121", "monai: DenseNet121", 96, 2, 3, CLASSES)
    yield from_("monai.networks.nets", "SEResNet50", "monai: SEResNet50", 96, spatial_dims=2, in_channels=3, num_classes=CLASSES)
    options = dict[str, Any](spatial_dims=2, in_channels=3, num_classes=CLASSES, pretrained=False)
    yield from_("monai.networks.nets", "EfficientNetBN", "monai: EfficientNetBN", 96, "efficientnet-b0", **options)
    vit: dict[str, Any] = {"in_channels": 3, "img_size": 96, "patch_size": 16, "hidden_size": 64, "mlp_dim": 128, "num_layers": 4}
    vit |= {"num_heads": 4, "classification": True, "num_classes": CLASSES, "spatial_dims": 2, "post_activation": ""}
    yield from_("monai.networks.nets", "ViT", "monai: ViT", 96, **vit)
    yield from_("torchxrayvision.models", "DenseNet", "torchxrayvision: DenseNet", 224, weights=None, channels=1)


def list_networks() -> list[Network]:
    """Return all networks."""
    return [*_timm(), *_transformers(), *_others()]
