"""What image pyramids share: a stem, stages that each may halve the map, and the sockets for classifiers and backbones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .inputs import check_images


class PyramidStage(nn.Module):
    """Layers, the first of which may halve the map, then the stage's norm where it has one. (B, in, H, W) -> (B, out, H', W')"""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return self.norm(hidden_states)


class PyramidEncoder(nn.Module):
    """(B, channels, H, W) -> the maps of the stem and of each stage, kept in channels-last memory.

    Args:
        stem: a sequence of `ConvBatchNorm`.
        stages: `PyramidStage`s.
    """

    def __init__(self, stem: nn.Sequential, stages: Iterable[nn.Module]):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    @property
    def input_layer(self) -> nn.Conv2d:
        return self.stem[0].conv

    def forward(self, pixel_values: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]) -> list[torch.Tensor]:
        return self.encode(self.embed(pixel_values), **kwargs)

    def embed(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        check_images(pixel_values, self.input_layer.in_channels)
        return self.stem(pixel_values.to(self.input_layer.weight.dtype, memory_format=torch.channels_last))

    def encode(self, embedding: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> list[torch.Tensor]:
        maps = [embedding]
        for stage in self.stages:
            maps.append(stage(maps[-1], **kwargs))
        return maps


class PyramidClassifierMixin:
    """The forward pass of `...ForImageClassification`: `self.classifier` on the `pooler_output` of the base model."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), as for the base model.
            labels: (B,) class indices, or (B, num_labels) for several labels or for regression.

        Returns:
            `logits` (B, num_labels) and, when `labels` are given, `loss`.
        """
        outputs: BaseModelOutputWithPooling = self.base_model(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PyramidBackboneMixin(BackboneMixin):
    """The forward pass of `...Backbone`: the maps of `self.encoder` for the stages in `out_features`."""

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), as for the base model.

        Returns:
            `feature_maps`: for each of `out_features`, the map (B, C, H / stride, W / stride) of that stage.
        """
        maps = dict(zip(self.stage_names, self.encoder(pixel_values, **kwargs)))
        return BackboneOutput(feature_maps=tuple(self.normalize(name, maps[name]) for name in self.out_features))

    def normalize(self, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        """What is done to a map before it is returned; nothing unless a backbone says so."""
        return feature_map
