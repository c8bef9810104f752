"""What the tests of image backbones share."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from typing import Any

import onnxruntime
import torch
from torch import nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_ext.catalog import METHODS
from tests.passport import Subject
from tests.tiny import TINY


def tiny(slug: str, auto_class: str) -> PreTrainedModel:
    """The class that `auto_class` finds, of the smallest size, in eval mode, with all parameters moved off their initial values
    and with batch statistics that are not those of a new module."""
    return used(subject(slug, auto_class).build())


def subject(slug: str, auto_class: str) -> Subject:
    config, inputs = TINY[slug]()
    return Subject(METHODS[slug].load(METHODS[slug].classes[auto_class]), config, inputs, (auto_class,))


def used(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 * torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else -0.25))
    return model


def image(height: int, width: int, batch: int = 1, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Standard normal, (batch, channels, height, width)."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def count_parameters(model_class: type, config: Any) -> int:
    """How many parameters the model has, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def train_under_upernet(backbone_config: Any, height: int = 64, width: int = 96) -> None:
    """Upstream's segmenter on top of our maps: one training step's loss and gradients, and logits of the size of the image."""
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=with_maps(backbone_config, "stage1", "stage2", "stage3", "stage4"),
        hidden_size=8,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        auxiliary_in_channels=backbone_config.out_sizes[2]
        if hasattr(backbone_config, "out_sizes")
        else backbone_config.hidden_sizes[2],
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config).train()
    output = model(image(height, width, batch=2), labels=torch.ones(2, height, width, dtype=torch.long))
    assert output.logits.shape == (2, 3, height, width)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())


def train_under_deformable_detr(
    backbone_config: Any, height: int = 64, width: int = 96, names: tuple[str, ...] = ("stage2", "stage3", "stage4")
) -> nn.Module:
    """Upstream's detector on the maps `names` of ours: one training step's loss reaches the backbone. Returns the detector."""
    torch.manual_seed(0)
    config = DeformableDetrConfig(
        backbone_config=with_maps(backbone_config, *names),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=len(names),
        num_queries=4,
        num_labels=3,
    )
    model = DeformableDetrForObjectDetection(config).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])} for _ in range(2)]
    output = model(image(height, width, batch=2), labels=labels)
    assert output.pred_boxes.shape == (2, 4, 4)
    output.loss.backward()
    backbone = [p for n, p in model.named_parameters() if "backbone" in n and p.requires_grad]
    assert backbone and all(p.grad is not None and p.grad.isfinite().all() for p in backbone)
    return model


def with_maps(backbone_config: Any, *names: str) -> Any:
    backbone_config = deepcopy(backbone_config)
    backbone_config.out_features = list(names)
    return backbone_config


@torch.no_grad()
def onnx_logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits of a classifier after export to ONNX, from onnxruntime."""

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        program = torch.export.export(Logits().eval(), (pixel_values,))
        torch.onnx.export(program, f=path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: pixel_values.numpy()})
    return torch.from_numpy(logits)


def train_under_mask2former(backbone_config: Any, height: int = 64, width: int = 96) -> None:
    """Upstream's mask classifier on all four maps of ours: one training step's loss reaches the backbone."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=with_maps(backbone_config, "stage1", "stage2", "stage3", "stage4"),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        num_labels=3,
        train_num_points=64,
    )
    model = Mask2FormerForUniversalSegmentation(config).train()
    masks = torch.zeros(2, height, width)
    masks[0, : height // 2], masks[1, height // 2 :] = 1, 1
    output = model(
        image(height, width, batch=2),
        mask_labels=[masks, masks],
        class_labels=[torch.tensor([0, 2]), torch.tensor([1, 2])],
    )
    assert output.class_queries_logits.shape == (2, 4, 4)
    output.loss.backward()
    backbone = [p for n, p in model.named_parameters() if ".encoder." in n and "pixel_level" in n]
    assert backbone and all(p.grad is not None and p.grad.isfinite().all() for p in backbone)
