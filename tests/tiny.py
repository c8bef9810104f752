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


def informer():
    """Half of the encoder's queries attend. All of the decoder's do: there, who attends at low precision is a matter of rounding, and
    the others get sums."""
    from hf_ext.models.informer import InformerGenerativeConfig

    config = InformerGenerativeConfig(
        context_length=24,
        label_length=4,
        prediction_length=4,
        num_input_channels=3,
        num_time_features=4,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        encoder_depths=[2, 1],
        sampling_factor=3,
    )
    observed = torch.ones(2, 24, 3, dtype=torch.bool)
    observed[:, 4:7, 1] = False
    return config, {
        "past_values": series(2, 24, 3),
        "past_time_features": series(2, 24, 4, seed=1) / 4,
        "future_time_features": series(2, 4, 4, seed=2) / 4,
        "past_observed_mask": observed,
        "future_values": series(2, 4, 3, seed=3),
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


def deltanet():
    from hf_ext.models.deltanet import DeltaNetConfig

    config = DeltaNetConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_heads=2,
        use_gate=True,
        allow_neg_eigval=True,
        initializer_range=0.2,  # keys are brought to length 1: near 0 that would blow rounding up
        pad_token_id=0,
        use_cache=False,
    )
    ids = tokens(61, length=70)
    return config, {"input_ids": ids, "labels": ids.clone()}


def signed_mamba():
    from hf_ext.models.deltanet import SignedMambaConfig

    config = SignedMambaConfig(
        vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2, tie_word_embeddings=False, use_cache=False
    )
    ids = tokens(61, length=9)
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


def gpht():
    from hf_ext.models.gpht import GPHTConfig

    config = GPHTConfig(
        context_length=24,
        token_length=8,
        pooling_rates=[4, 1],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    observed = torch.ones(2, 24, 3, dtype=torch.bool)
    observed[:, 4:7, 1] = False
    return config, {
        "past_values": series(2, 24, 3),
        "past_observed_mask": observed,
        "future_values": series(2, 8, 3, seed=2),
    }


def sttn():
    from hf_ext.models.sttn import STTNConfig

    config = STTNConfig(
        form="gated",
        num_nodes=5,
        context_length=6,
        prediction_length=4,
        num_input_channels=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        steps_per_day=9,
        dropout=0.0,
    )
    return config, {
        "past_values": torch.randn(2, 6, 5, 2, generator=seeded()),
        "adjacency": torch.rand(2, 5, 5, generator=seeded(1)),
        "future_values": torch.randn(2, 4, 5, 1, generator=seeded(2)),
    }


def virtual_nodes():
    from hf_ext.models.virtual_nodes import VirtualNodesConfig

    config = VirtualNodesConfig(
        num_nodes=6,
        num_virtual_nodes=3,
        embedding_dim=4,
        num_input_channels=2,
        prediction_length=5,
        blocks=[[16, 8, 16], [16, 8, 24], [32, 24]],
        dropout=0.0,
    )
    return config, {
        "past_values": torch.randn(2, 12, 6, 2, generator=seeded()),
        "adjacency": torch.rand(2, 6, 6, generator=seeded(1)),
        "future_values": torch.randn(2, 5, 6, 1, generator=seeded(2)),
    }


def slab():
    from hf_ext.models.slab import SlabConfig

    # RepBN does not keep activations small: with more layers a step of the passport's large LoRA weights would lead to infinity.
    config = SlabConfig(
        image_size=32,
        hidden_sizes=[16],
        depths=[2],
        linear_depths=[1],
        num_attention_heads=[2],
        mlp_ratios=2,
        window_sizes=3,
        linear_window_sizes=6,
        norm_decay_steps=10_000_000,  # two passes in training are then alike
        drop_path_rate=0.0,
        num_labels=4,
        out_features=["stage1"],
    )
    return config, {"pixel_values": 0.1 * images(32), "labels": torch.tensor([1, 3])}


def slab_llama():
    from hf_ext.models.slab import SlabLlamaConfig

    config = SlabLlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    ids = tokens(40, length=9)
    return config, {"input_ids": ids, "labels": ids.clone(), "use_cache": False}


def flashrnn():
    """The labels serve as next tokens and, one for each of twelve classes, as answers of a classifier."""
    from hf_ext.models.flashrnn import FlashRNNConfig

    config = FlashRNNConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_heads=2,
        function="slstm",
        pad_token_id=0,
        num_labels=12,
        problem_type="multi_label_classification",
        use_cache=False,
    )
    ids = tokens(61)
    return config, {"input_ids": ids, "labels": ids % 2}


def tpgn():
    from hf_ext.models.tpgn import TPGNConfig

    config = TPGNConfig(
        context_length=12,
        prediction_length=7,
        period=4,
        num_input_channels=3,
        num_time_features=2,
        hidden_size=5,
        scaling="std",
    )
    observed = torch.ones(2, 12, 3, dtype=torch.bool)
    observed[:, 4:7, 1] = False
    return config, {
        "past_values": series(2, 12, 3),
        "past_observed_mask": observed,
        "past_time_features": series(2, 12, 2, seed=1) / 4,
        "future_values": series(2, 7, 3, seed=2),
    }


def dualformer():
    """Of different widths, with a padded prompt."""
    from hf_ext.models.dualformer import DualformerConfig

    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = DualformerConfig(
        encoder=sizes | {"hidden_size": 32},
        decoder=sizes | {"hidden_size": 48},
        vocab_size=61,
        use_cache=False,
    )
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    ids, labels = tokens(61), tokens(61, length=15)
    answer = torch.cat((torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]), 1)
    labels[1, 11:] = -100
    return config, {"input_ids": ids * mask, "attention_mask": mask, "decoder_input_ids": answer, "labels": labels}


def wide_attention():
    from hf_ext.models.wide_attention import WideAttentionConfig

    config = WideAttentionConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=12,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    ids = tokens(61)
    ids[1, 9:] = 0
    return config, {"input_ids": ids, "pair_input_ids": tokens(61, length=7), "labels": torch.tensor([2, 0])}


def routing_transformer():
    """Centroids as parameters: those that move with the tokens make every pass in training another one."""
    from hf_ext.models.routing_transformer import RoutingTransformerConfig

    config = RoutingTransformerConfig(
        vocab_size=61,
        hidden_size=32,
        embedding_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_local_heads=2,
        num_routing_heads=2,
        first_routing_layer=1,
        num_clusters=3,
        cluster_window=8,
        block_size=4,
        look_back=4,
        max_relative_position=3,
        ema=False,
        hidden_dropout=0.0,
        use_cache=False,
    )
    ids = tokens(61, length=22)
    return config, {"input_ids": ids, "labels": ids.clone()}


def aaren():
    from hf_ext.models.aaren import AarenConfig

    config = AarenConfig(
        num_input_channels=3,
        context_length=10,
        prediction_length=4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        dropout=0.0,
        num_labels=4,
    )
    return config, {
        "past_values": series(2, 10, 3),
        "future_values": series(2, 4, 3, seed=1),
        "labels": torch.tensor([1, 3]),
    }


def tcnca():
    """Two chunks and a piece; the labels serve as next tokens and, one for each of twelve classes, as answers of a classifier."""
    from hf_ext.models.tcnca import TCNCAConfig

    config = TCNCAConfig(
        vocab_size=61,
        hidden_size=32,
        z_dim=16,
        v_dim=48,
        intermediate_size=48,
        num_hidden_layers=2,
        chunk_size=5,
        kernel_size=3,
        dilation_factor=2,
        depth=3,
        pad_token_id=0,
        dropout=0.0,
        tie_word_embeddings=False,
        num_labels=12,
        problem_type="multi_label_classification",
        use_cache=False,
    )
    ids = tokens(61)
    return config, {"input_ids": ids, "labels": ids % 2}


def lmuformer():
    from hf_ext.models.lmuformer import LMUFormerConfig

    config = LMUFormerConfig(
        num_mel_bins=12,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        theta=20,
        max_length=20,
        num_labels=4,
    )
    return config, {"input_features": series(2, 20, 12), "labels": torch.tensor([1, 3])}


def label_shift_adapter():
    """Classes for texts and sounds take a classifier of images, too, where it is what their configuration describes."""
    from transformers import ViTConfig

    from hf_ext.adapters.label_shift_adapter import LabelShiftAdapterConfig

    base = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    config = LabelShiftAdapterConfig(base_config=base, hidden_size=8)
    return config, {"pixel_values": images(16), "labels": torch.tensor([0, 2])}


def dynn():
    from hf_ext.models.dynn import MultiExitConfig

    config = MultiExitConfig(
        image_size=16, hidden_sizes=[8, 16], depths=[2, 2], stem_size=8, exits=[0, 1, 1, 0], num_labels=4
    )
    return config, {"pixel_values": images(16), "labels": torch.tensor([1, 3])}


def dynn_text():
    from transformers import BertConfig

    from hf_ext.models.dynn import MultiExitTextConfig

    backbone = BertConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    ids = tokens(61)
    ids[1, 9:] = 0
    config = MultiExitTextConfig(backbone_config=backbone, exits=[1, 1, 0])
    return config, {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([2, 0])}


TINY: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "gla": gla,
    "deltanet": deltanet,
    "flashrnn": flashrnn,
    "aaren": aaren,
    "lmuformer": lmuformer,
    "tcnca": tcnca,
    "itransformer": itransformer,
    "informer": informer,
    "gpht": gpht,
    "tpgn": tpgn,
    "sttn": sttn,
    "virtual_nodes": virtual_nodes,
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
    "routing_transformer": routing_transformer,
    "slab": slab,
    "wide_attention": wide_attention,
    "dualformer": dualformer,
    "dynn": dynn,
    "label_shift_adapter": label_shift_adapter,
}

# The same for `Method.others`, by configuration class
OTHERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "SlabLlamaConfig": slab_llama,
    "SignedMambaConfig": signed_mamba,
    "MultiExitTextConfig": dynn_text,
}
