"""The smallest sensible instance of each method: what the passport, and other suites, run on.

`TINY[slug]()` gives `(config, inputs)`: a configuration for every class of `METHODS[slug].model_classes()`, and forward arguments with a
batch of two or more, labels included. For Diffusers models the configuration is the dict that `from_config` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    """(batch, channels, size, size) in [0, 1]."""
    return torch.rand(batch, channels, size, size, generator=seeded())


def series(batch: int, length: int, channels: int, seed: int = 0) -> torch.Tensor:
    """(batch, length, channels), roughly standardised."""
    return torch.randn(batch, length, channels, generator=seeded(seed))


def tokens(vocab_size: int, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, vocab_size, (batch, length), generator=seeded())


def llm_drop():
    from hf_ext.surgery import SurgicalLlamaConfig

    config = SurgicalLlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        surgery=[{"name": "llm_drop", "attention": [0, 2], "mlp": [1]}],
    )
    input_ids = tokens(64)
    return config, {"input_ids": input_ids, "labels": input_ids, "use_cache": False}


def hat():
    from hf_ext.models.hat import HatConfig

    config = HatConfig(
        image_size=16,
        hidden_size=16,
        depths=[2, 1],
        num_attention_heads=[2, 4],
        window_size=4,
        squeeze_factor=4,
        conv_scale=0.5,
        drop_path_rate=0.0,
        upscale=2,
    )
    return config, {"pixel_values": images(10), "labels": images(20)}


def itransformer():
    from hf_ext.models.itransformer import ITransformerConfig

    config = ITransformerConfig(
        context_length=16,
        prediction_length=8,
        num_input_channels=3,
        num_time_features=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_labels=4,
    )
    observed = torch.ones(2, 16, 3, dtype=torch.bool)
    observed[:, 4:7, 1] = False
    return config, {
        "past_values": series(2, 16, 3),
        "past_observed_mask": observed,
        "past_time_features": series(2, 16, 2, seed=1) / 4,
        "future_values": series(2, 8, 3, seed=2),
        "labels": torch.tensor([1, 3]),
    }


def pixart_delta():
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 4,
        "cross_attention_dim": 24,
        "sample_size": 8,
        "use_additional_conditions": True,
        "caption_channels": 16,
        "num_control_layers": 2,
    }
    return config, {
        "hidden_states": torch.randn(2, 4, 8, 6, generator=seeded()),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=seeded(1)),
        "timestep": torch.tensor([999, 259]),
        "added_cond_kwargs": {
            "resolution": torch.tensor([[64.0, 48.0]] * 2),
            "aspect_ratio": torch.tensor([[4 / 3]] * 2),
        },
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "controlnet_cond": torch.randn(2, 4, 8, 6, generator=seeded(2)),
    }


def gla() -> tuple[Any, dict[str, Any]]:
    from hf_ext.models.gla import GLAConfig

    config = GLAConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_heads=4,
        num_kv_heads=2,
        use_short_conv=True,
        pad_token_id=0,
        use_cache=False,
    )
    ids = tokens(61, length=70)
    return config, {"input_ids": ids, "labels": ids.clone()}


def crossvit():
    from hf_ext.models.crossvit import CrossVitConfig

    config = CrossVitConfig(
        image_sizes=[24, 16],
        patch_sizes=[6, 8],
        hidden_sizes=[16, 32],
        depths=[[1, 2, 0], [1, 1, 2]],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        num_labels=3,
    )
    return config, {"pixel_values": images(24), "labels": torch.tensor([0, 2])}


def efficientformer():
    from hf_ext.models.efficientformer import EfficientFormerConfig

    config = EfficientFormerConfig(
        depths=[1, 1, 2, 2],
        hidden_sizes=[8, 12, 16, 24],
        num_attention_heads=2,
        key_dim=8,
        attention_ratio=2,
        resolution=2,
        bias_resolution=3,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return config, {"pixel_values": images(40), "labels": torch.tensor([1, 3])}


def nextvit():
    from hf_ext.models.nextvit import NextViTConfig

    config = NextViTConfig(
        stem_sizes=[8, 8, 16],
        hidden_sizes=[16, 32, 32, 32],
        out_sizes=[16, 64, 64, 64],
        depths=[1, 2, 5, 1],
        head_dim=16,
        mix_block_ratio=0.5,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return config, {"pixel_values": images(48), "labels": torch.tensor([1, 3])}


def t2t_vit():
    from hf_ext.models.t2t_vit import T2TViTConfig

    config = T2TViTConfig(
        image_size=64,
        token_size=8,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3"],
    )
    return config, {"pixel_values": images(48), "labels": torch.tensor([1, 3])}


def fmvit():
    from hf_ext.models.fmvit import FMViTConfig

    config = FMViTConfig(
        stem_sizes=[8, 8, 16],
        hidden_sizes=[16, 32, 32, 32],
        out_sizes=[16, 64, 64, 64],
        depths=[1, 2, 2, 1],
        head_dim=16,
        mix_block_ratio=0.5,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return config, {"pixel_values": images(40), "labels": torch.tensor([1, 3])}


def dualtoken_vit():
    from hf_ext.models.dualtoken_vit import DualTokenViTConfig

    config = DualTokenViTConfig(
        hidden_sizes=[8, 16, 24],
        depths=[1, 2, 1],
        num_attention_heads=[2, 2, 3],
        mlp_ratios=[2, 2, 2],
        conv_kernel_size=3,
        global_grid=3,
        neck_dim=32,
        drop_path_rate=0.0,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3"],
    )
    return config, {"pixel_values": images(72), "labels": torch.tensor([1, 3])}


def rmt():
    from hf_ext.models.rmt import RMTConfig

    config = RMTConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[2, 2, 3, 4],
        decomposed=[True, True, False, False],
        use_layer_scale=[False, False, True, False],
        projection_size=24,
        num_labels=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return config, {"pixel_values": images(40), "labels": torch.tensor([1, 3])}


def dit_router():
    from hf_ext.models.dit_router import DynamicTokenRoutingConfig

    config = DynamicTokenRoutingConfig(
        hidden_sizes=[8, 12, 16, 24],
        num_attention_heads=[1, 2, 2, 3],
        mlp_ratios=[2, 2, 2, 2],
        depths=[1, 1, 2, 1],
        num_labels=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return config, {"pixel_values": images(40), "labels": torch.tensor([1, 3])}


def dlgsanet():
    from hf_ext.models.dlgsanet import DLGSANetConfig

    config = DLGSANetConfig(
        hidden_size=16,
        depths=[1, 2],
        kernel_size=3,
        filter_group_size=4,
        num_attention_heads=2,
        attention_window_size=7,
        upscale=2,
    )
    return config, {"pixel_values": images(10), "labels": images(20)}


def dwformer():
    from hf_ext.models.dwformer import DWFormerConfig

    config = DWFormerConfig(
        hidden_sizes=[8, 12, 16, 12, 8],
        mlp_ratios=[2, 1, 2, 1, 2],
        depths=[1, 1, 2, 1, 1],
        squeeze_factor=2,
        global_pool="softmax",
    )
    return config, {"pixel_values": images(13), "labels": images(13)}


def cbnet():
    from hf_ext.models.cbnet import CompositeBackboneConfig

    backbone = {"model_type": "swin", "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4}
    config = CompositeBackboneConfig(backbone_config={**backbone, "drop_path_rate": 0.0}, zero_init=False)
    return config, {"pixel_values": images(40), "labels": torch.tensor([0, 1])}


TINY: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "gla": gla,
    "itransformer": itransformer,
    "llm_drop": llm_drop,
    "hat": hat,
    "crossvit": crossvit,
    "pixart_delta": pixart_delta,
    "efficientformer": efficientformer,
    "nextvit": nextvit,
    "t2t_vit": t2t_vit,
    "fmvit": fmvit,
    "dualtoken_vit": dualtoken_vit,
    "rmt": rmt,
    "dit_router": dit_router,
    "dlgsanet": dlgsanet,
    "dwformer": dwformer,
    "cbnet": cbnet,
}
