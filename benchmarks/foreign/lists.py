"""The networks: of timm, of transformers, and of other libraries, in small variants where there are such."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.foreign.networks import CLASSES, Network

TIMM: dict[int, tuple[str, ...]] = {
    160: (
        *("resnet18", "regnety_002", "convnext_atto", "efficientnet_b0", "ghostnet_100", "mambaout_femto", "dla34", "dpn68"),
        *("eca_nfnet_l0", "fastvit_t8", "edgenext_xx_small", "repvit_m0_9", "starnet_s1", "pvt_v2_b0", "hrnet_w18_small"),
        *("poolformer_s12", "res2net50_26w_4s", "selecsls42b", "tresnet_m", "vgg11_bn", "densenet121", "rexnet_100"),
        *("hgnetv2_b0", "mobileone_s0", "mobilenetv4_conv_small", "caformer_s18", "repvgg_a0"),
    ),
    224: (
        *("mvitv2_tiny", "twins_svt_small", "levit_128s", "pit_ti_distilled_224", "mixer_s32_224", "gmlp_ti16_224"),
        "visformer_tiny",
        *("resmlp_12_224", "mobilevit_xxs", "mobilevitv2_050", "xcit_nano_12_p16_224", "tnt_s_patch16_224", "coat_lite_tiny"),
        *(
            "davit_tiny",
            "gcvit_xxtiny",
            "tiny_vit_5m_224",
            "swiftformer_xs",
            "nest_tiny",
            "coatnet_nano_rw_224",
            "hiera_tiny_224",
        ),
        *(
            "efficientvit_m0",
            "efficientvit_b0",
            "nextvit_small",
            "convit_tiny",
            "beit_base_patch16_224",
            "inception_v3",
            "volo_d1_224",
        ),
    ),
    240: ("crossvit_9_240",),
    256: ("maxvit_pico_rw_256", "botnet26t_256", "lambda_resnet26t", "halonet26t"),
}
"""timm's networks, by the side of their pictures."""


def _timm() -> Iterator[Network]:
    timm = importlib.import_module("timm")

    def one(name: str, side: int, **options: Any) -> Network:
        return Network(f"timm: {name}", side, lambda: timm.create_model(name, num_classes=CLASSES, **options))

    for side, names in TIMM.items():
        yield from (one(name, side) for name in names)
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "cait_xxs24_224", "flexivit_small"):
        yield one(name, 96, img_size=96)
    for name in ("vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"):
        yield one(name, 98, img_size=98)
    yield one("swin_tiny_patch4_window7_224", 112, img_size=112)
    yield one("vit_relpos_small_patch16_224", 96, img_size=96)


def _transformers() -> Iterator[Network]:
    library = importlib.import_module("transformers")
    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}

    def one(kind: str, side: int = 96, **options: Any) -> Network:
        def build() -> nn.Module:
            config = getattr(library, f"{kind}Config")(num_labels=CLASSES, **options)
            made: nn.Module = getattr(library, f"{kind}ForImageClassification")(config)
            return made

        return Network(f"transformers: {kind}", side, build)

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
    yield one("MobileViT", 128)
    yield one("SwiftFormer", 224)
    yield one("MobileNetV1", 160)
    yield one("Levit", 224)
    yield one("Cvt", 96, depth=[1, 2, 3])
    yield one("Hiera", 224, image_size=[224, 224], depths=[1, 1, 2, 1], embed_dim=32)
    yield one("Bit", 96, embedding_size=32, hidden_sizes=[128, 128, 128, 128], depths=[1, 1, 2, 1])
    yield one("HGNetV2", 160)
    yield one("TextNet", 160)
    for kind in ("Siglip", "CLIP"):
        yield one(kind, vision_config={"image_size": 96, "patch_size": 16, **small})


TOKENS: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 16,
    "num_classes": CLASSES,
    "dim": 64,
    "depth": 4,
    "heads": 4,
    "mlp_dim": 128,
}

CROSS: dict[str, Any] = {
    **{"image_size": 96, "num_classes": CLASSES, "depth": 2, "sm_dim": 32, "sm_patch_size": 8, "lg_dim": 48, "lg_patch_size": 16},
    **{"sm_enc_depth": 1, "sm_enc_heads": 4, "sm_enc_mlp_dim": 64, "lg_enc_depth": 2, "lg_enc_heads": 4, "lg_enc_mlp_dim": 96},
    **{"cross_attn_depth": 2, "cross_attn_heads": 4},
}

CCT: dict[str, Any] = {
    **{"img_size": 96, "embedding_dim": 64, "num_layers": 3, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": CLASSES},
    **{"n_conv_layers": 2, "kernel_size": 7, "stride": 2, "padding": 3, "positional_embedding": "learnable"},
    **{"pooling_kernel_size": 3, "pooling_stride": 2, "pooling_padding": 1},
}

MONAI_VIT: dict[str, Any] = {
    **{"in_channels": 3, "img_size": 96, "patch_size": 16, "hidden_size": 64, "mlp_dim": 128, "num_layers": 4, "num_heads": 4},
    **{"classification": True, "num_classes": CLASSES, "spatial_dims": 2, "post_activation": ""},
}


def _from(module: str, name: str, side: int, *args: Any, title: str = "", channels: int = 3, **options: Any) -> Network:
    def build() -> nn.Module:
        made: nn.Module = getattr(importlib.import_module(module), name)(*args, **options)
        return made

    return Network(f"{module.split('.', maxsplit=1)[0]}: {title or name}", side, build, channels)


def _others() -> Iterator[Network]:
    yield _from("vit_pytorch", "ViT", 96, **TOKENS)
    yield _from("vit_pytorch", "ViT", 96, title="ViT, mean of tokens", pool="mean", **TOKENS)
    yield _from("vit_pytorch", "SimpleViT", 96, **TOKENS)
    registers = "vit_pytorch.simple_vit_with_register_tokens"
    yield _from(registers, "SimpleViT", 96, title="SimpleViT with registers", **TOKENS)
    yield _from("vit_pytorch.deepvit", "DeepViT", 96, **TOKENS)
    yield _from("vit_pytorch.cct", "CCT", 96, **CCT)
    yield _from("vit_pytorch.cross_vit", "CrossViT", 96, **CROSS)
    yield _from("vit_pytorch.t2t", "T2TViT", 96, dim=64, image_size=96, depth=3, heads=4, mlp_dim=128, num_classes=CLASSES)
    yield _from("vit_pytorch.twins_svt", "TwinsSVT", 224, num_classes=CLASSES, s1_emb_dim=16, s2_emb_dim=32, s3_emb_dim=48)
    stages: dict[str, Any] = {"num_classes": CLASSES, "dim": 32, "dim_head": 16, "depth": (1, 1, 1, 1)}
    yield _from("vit_pytorch.max_vit", "MaxViT", 224, window_size=7, dim_conv_stem=16, **stages)
    yield _from("vit_pytorch.sep_vit", "SepViT", 224, window_size=7, heads=(1, 2, 4, 8), **stages)
    yield _from("monai.networks.nets", "DenseNet121", 96, 2, 3, CLASSES)
    yield _from("monai.networks.nets", "SEResNet50", 96, spatial_dims=2, in_channels=3, num_classes=CLASSES)
    options = dict[str, Any](spatial_dims=2, in_channels=3, num_classes=CLASSES, pretrained=False)
    yield _from("monai.networks.nets", "EfficientNetBN", 96, "efficientnet-b0", **options)
    yield _from("monai.networks.nets", "ViT", 96, **MONAI_VIT)
    yield _from("monai.networks.nets", "TorchVisionFCModel", 224, "resnet18", num_classes=CLASSES, pretrained=False)
    yield _from("torchxrayvision.models", "DenseNet", 224, weights=None, channels=1)
    for name in ("bninception", "se_resnet50", "inceptionv4", "nasnetamobile", "xception"):
        side = 299 if name in ("inceptionv4", "xception") else 224
        yield _from("pretrainedmodels", name, side, num_classes=CLASSES, pretrained=None)
    for name in ("preresnet18", "shufflenetv2b_w1", "airnet50_1x64d_r2", "diracnet18v2", "cbam_resnet18", "octresnet10_ad2"):
        yield _pytorchcv(name, 224)
    for name in ("squeezenet_v1_1", "resnetd50b", "msdnet22"):
        yield _pytorchcv(name, 224)
    for name in ("pyramidnet110_a48_cifar10", "wrn16_10_cifar10"):
        yield _pytorchcv(name, 32)


def _pytorchcv(name: str, side: int) -> Network:
    options: dict[str, Any] = {} if name.endswith("cifar10") else {"num_classes": CLASSES}
    return _from("pytorchcv.model_provider", "get_model", side, name, title=name, pretrained=False, **options)


def list_networks() -> list[Network]:
    """Return all networks."""
    return [*_timm(), *_transformers(), *_others()]
