"""Classifiers that a label shift adapter is put on: upstream's and ours, of images, texts and sounds, as small as can be."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    ASTConfig,
    BertConfig,
    ConvNextConfig,
    DeiTConfig,
    GPT2Config,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    Wav2Vec2Config,
)

from tests.tiny import TINY, images, series, tokens

LABELS = {"num_labels": 4}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def resnet(**fields: Any) -> ResNetConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetConfig(**sizes, **{**LABELS, **fields})


def own(slug: str) -> PreTrainedConfig:
    return TINY[slug]()[0]


def wav2vec2() -> Wav2Vec2Config:
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_conv_pos_embeddings": 4}
    return Wav2Vec2Config(
        **WIDTHS, **LABELS, **convolutions, num_conv_pos_embedding_groups=2, classifier_proj_size=8, vocab_size=9
    )


# base -> task, configuration, inputs without labels
BASES: dict[str, tuple[str, Any, Any]] = {
    "resnet": ("Image", resnet, lambda: {"pixel_values": images(32)}),
    "convnext": (
        "Image",
        lambda: ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], **LABELS),
        lambda: {"pixel_values": images(32)},
    ),
    "vit": (
        "Image",
        lambda: ViTConfig(**WIDTHS, image_size=16, patch_size=4, **LABELS),
        lambda: {"pixel_values": images(16)},
    ),
    "swin": (
        "Image",
        lambda: SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, **LABELS),
        lambda: {"pixel_values": images(32)},
    ),
    "deit": (
        "Image",
        lambda: DeiTConfig(**WIDTHS, image_size=16, patch_size=4, **LABELS),
        lambda: {"pixel_values": images(16)},
    ),
    "deit with teacher": (
        "Image",
        lambda: DeiTConfig(
            **WIDTHS, image_size=16, patch_size=4, architectures=["DeiTForImageClassificationWithTeacher"], **LABELS
        ),
        lambda: {"pixel_values": images(16)},
    ),
    "crossvit": ("Image", lambda: own("crossvit"), lambda: {"pixel_values": images(24)}),
    "rmt": ("Image", lambda: own("rmt"), lambda: {"pixel_values": images(40)}),
    "efficientformer": ("Image", lambda: own("efficientformer"), lambda: {"pixel_values": images(40)}),
    "bert": (
        "Sequence",
        lambda: BertConfig(**WIDTHS, **TEXT, **NO_DROPOUT, **LABELS, max_position_embeddings=64),
        lambda: {"input_ids": tokens(61), "attention_mask": torch.ones(2, 12, dtype=torch.long)},
    ),
    "gpt2": (
        "Sequence",
        lambda: GPT2Config(
            **TEXT, **LABELS, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ),
        lambda: {"input_ids": tokens(61), "attention_mask": torch.ones(2, 12, dtype=torch.long)},
    ),
    "audio spectrogram transformer": (
        "Audio",
        lambda: ASTConfig(**WIDTHS, **LABELS, patch_size=4, num_mel_bins=8, max_length=16, frequency_stride=4, time_stride=4),
        lambda: {"input_values": series(2, 16, 8)},
    ),
    "wav2vec2": ("Audio", wav2vec2, lambda: {"input_values": series(2, 120, 1)[..., 0]}),
}  # fmt: skip


def adapted_class(base: str) -> type:
    from hf_ext.adapters import label_shift_adapter

    return getattr(label_shift_adapter, f"LabelShiftAdapterFor{BASES[base][0]}Classification")
