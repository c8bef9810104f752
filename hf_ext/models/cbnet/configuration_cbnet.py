"""Configuration of CBNetV2, "CBNet: A Composite Backbone Network Architecture for Object Detection" (arXiv 2107.00420)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from hf_ext.layers.presets import PresetMixin


def _swin(embed_dim: int, depths: list[int], num_heads: list[int]) -> dict[str, Any]:
    backbone = {"model_type": "swin", "embed_dim": embed_dim, "depths": depths, "num_heads": num_heads}
    return {"backbone_config": {**backbone, "drop_path_rate": 0.2}}


def _resnet(depths: list[int]) -> dict[str, Any]:
    backbone = {"model_type": "resnet", "depths": depths}
    return {"backbone_config": backbone, "prune_stages": 1, "frozen_stages": 1, "freeze_batch_norm": True}


PRESETS = {
    "db-swin-t": _swin(96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "db-swin-s": _swin(96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "db-swin-b": _swin(128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "db-swin-l": _swin(192, [2, 2, 18, 2], [6, 12, 24, 48]),
    "db-resnet50": _resnet([3, 4, 6, 3]),
    "db-resnet101": _resnet([3, 4, 23, 3]),
}


@strict
class CompositeBackboneConfig(PresetMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Presets, as published: `db-swin-t`, `db-swin-s`, `db-swin-b`, `db-swin-l`, `db-resnet50`, `db-resnet101`.

    Args:
        backbone_config: the backbone that is composed, any that `hf_ext.layers.stages` knows; Swin-T when left out.
        num_backbones: copies of it; the last one leads, the others assist (2: the paper's dual backbone, 3: its triple backbone).
        prune_stages: how many of the first stages the later backbones leave out; they reuse the assistant's. The stem is always shared.
            The authors' `cb_del_stages` of 1 is 1 for ResNet and 0 for Swin.
        zero_init: links start as zero (their norm's weight and bias where they have one, otherwise the convolution).
        link_norm: links are a convolution without bias and a BatchNorm with fixed statistics, instead of a convolution with
            bias. None: as published, for ResNet only.
        frozen_stages: -1: everything is trained; 0: all but the stem; k: all but the stem and the first k stages.
        freeze_batch_norm: BatchNorm uses its running statistics in training, too.
        embedding_norm: whether Swin's patch embedding ends with a norm.
        pyramid_size, num_pyramid_levels: channels and levels of `CompositeBackboneWithPyramid`.
        assistant_loss_weight: weight of the first assistant's loss in assistant supervision; all others weigh 1.
        out_features, out_indices: what is returned, of "stem", "stage1", ...; all stages when left out.
    """

    model_type = "cbnet"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="swin")}

    backbone_config: dict | PreTrainedConfig | None = None
    num_backbones: int = 2
    prune_stages: int = 0
    zero_init: bool = True
    link_norm: bool | None = None
    frozen_stages: int = -1
    freeze_batch_norm: bool = False
    embedding_norm: bool = True
    pyramid_size: int = 256
    num_pyramid_levels: int = 5
    assistant_loss_weight: float | int = 0.5
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    PRESETS = PRESETS

    def __post_init__(self, **kwargs: Any):
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        stages = [name for name in getattr(self.backbone_config, "stage_names", None) or () if name != "stem"]
        if not stages:
            raise ValueError(
                f"`backbone_config` must be of a backbone with stages, not {self.backbone_config.model_type}"
            )
        self.stage_names = ["stem", *stages]
        if self.link_norm is None:
            self.link_norm = self.backbone_config.model_type == "resnet"
        if out_features is None and out_indices is None:
            out_features = stages
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        self._check()

    @property
    def num_channels(self) -> int:
        return self.backbone_config.num_channels

    @property
    def num_hidden_layers(self) -> int:
        """Stages; `hidden_states` holds one entry for each, after the stem."""
        return len(self.stage_names) - 1

    @property
    def branch_weights(self) -> list[float]:
        """Loss weights in assistant supervision, the assistants' first and the lead's last."""
        return [float(self.assistant_loss_weight)] + [1.0] * (self.num_backbones - 1)

    def _check(self) -> None:
        if self.num_backbones < 2:
            raise ValueError(f"`num_backbones` must be at least 2, not {self.num_backbones}")
        stages = self.num_hidden_layers
        if not 0 <= self.prune_stages < stages:
            raise ValueError(f"`prune_stages` must lie in [0, {stages}), not {self.prune_stages}")
        if not -1 <= self.frozen_stages <= stages:
            raise ValueError(f"`frozen_stages` must lie in [-1, {stages}], not {self.frozen_stages}")
        if self.pyramid_size <= 0:
            raise ValueError(f"`pyramid_size` must be positive, not {self.pyramid_size}")
        if self.num_pyramid_levels < 1:
            raise ValueError(f"`num_pyramid_levels` must be at least 1, not {self.num_pyramid_levels}")
        if self.assistant_loss_weight < 0:
            raise ValueError(f"`assistant_loss_weight` must not be negative, not {self.assistant_loss_weight}")


__all__ = ["CompositeBackboneConfig"]
