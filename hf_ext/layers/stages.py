"""How to take a backbone apart: stem, stages, and the norms of the maps that it returns.

Everything is a map (B, C, H, W) here. A family knows the names of its parts; a new one is a table entry or a small class.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_ext.layers.pyramid import PyramidBackboneMixin
from hf_ext.layers.tokens import to_map, to_tokens


class Family:
    """Backbones whose stages map a map to a map, such as ResNet and ConvNeXt: each begins by halving its input.

    Args:
        stem, stages: where the backbone keeps them.
        unused: parts that feature maps do not need.
    """

    halves_last = False  # whether stages end by halving the map: then a stage's input has the shape of its output

    def __init__(self, stem: str, stages: str, unused: tuple[str, ...] = ()):
        self.stem_name, self.stages_name, self.unused = stem, stages, unused

    def stages(self, backbone: PreTrainedModel) -> nn.ModuleList:
        return backbone.get_submodule(self.stages_name)

    def widths(self, backbone: PreTrainedModel) -> list[int]:
        """Channels of the stem and of each stage."""
        return list(backbone.num_features)

    def input_widths(self, backbone: PreTrainedModel) -> list[int]:
        """Channels that each stage takes."""
        widths = self.widths(backbone)
        return widths[1:] if self.halves_last else widths[:-1]

    def checkpoints_itself(self, backbone: PreTrainedModel) -> bool:
        return any(isinstance(module, GradientCheckpointingLayer) for module in backbone.modules())

    def remove(self, backbone: PreTrainedModel, stem: bool, stages: int) -> None:
        """Takes out what is never run: `unused`, the stem, and the first stages."""
        for name in (*self.unused, *([self.stem_name] if stem and self.stem_name else [])):
            backbone.set_submodule(name, nn.Identity())
        for index in range(stages):
            self.stages(backbone)[index] = nn.Identity()

    def first_parts(self, backbone: PreTrainedModel, count: int) -> list[nn.Module]:
        """The stem and the first `count` stages."""
        stem = [backbone.get_submodule(self.stem_name)] if self.stem_name else []
        return [*stem, *self.stages(backbone)[:count]]

    def stem(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        return backbone.get_submodule(self.stem_name)(pixel_values) if self.stem_name else pixel_values

    def stage(self, backbone: PreTrainedModel, index: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stage's map, and what the next stage takes."""
        x = self.stages(backbone)[index](x)
        return x, x

    def normalize(self, backbone: PreTrainedModel, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        norms = getattr(backbone, "hidden_states_norms", None)
        return feature_map if norms is None else norms[stage](feature_map)


class Pyramid(Family):
    """The backbones of this package that are built on `PyramidBackboneMixin`."""

    def stem(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        return backbone.encoder.embed(pixel_values)

    def normalize(self, backbone: PreTrainedModel, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        return backbone.normalize(stage, feature_map)


class Pvt(Family):
    """PVTv2: each stage embeds patches of its input, the first one those of the image, so there is no stem."""

    def widths(self, backbone: PreTrainedModel) -> list[int]:
        return [backbone.config.num_channels, *backbone.config.hidden_sizes]

    def stage(self, backbone: PreTrainedModel, index: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (tokens, *_), height, width = self.stages(backbone)[index](x, False)
        x = to_map(tokens, (height, width)).contiguous()
        return x, x


class Swin(Family):
    """Stages of tokens that end with patch merging; images of any size."""

    halves_last = True
    arguments = {"always_partition": True, "output_hidden_states_before_downsampling": True}

    def stem(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = backbone.get_submodule(self.stem_name)
        positions = embeddings.position_embeddings
        if positions is None:
            return to_map(*embeddings(pixel_values))
        tokens, size = embeddings.patch_embeddings(pixel_values)
        grid = to_map(positions, embeddings.patch_grid)
        embedding = to_map(embeddings.norm(tokens), size)
        return embeddings.dropout(embedding + nn.functional.interpolate(grid, size=size, mode="bicubic"))

    def stage(self, backbone: PreTrainedModel, index: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = x.shape[2:]
        stage = self.stages(backbone)[index]
        merged, feature_map, *_ = stage(to_tokens(x), (height, width), **self.arguments)
        if stage.downsample is None:
            return self.as_map(feature_map, height, width), x
        return self.as_map(feature_map, height, width), to_map(merged, ((height + 1) // 2, (width + 1) // 2))

    def as_map(self, feature_map: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return feature_map

    def normalize(self, backbone: PreTrainedModel, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        tokens = backbone.hidden_states_norms[stage](to_tokens(feature_map))
        return to_map(tokens, feature_map.shape[2:]).contiguous()


class SwinV2(Swin):
    """As upstream's backbone returns them, maps have no norm of their own."""

    arguments = {}

    def as_map(self, feature_map: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return to_map(feature_map, (height, width)).contiguous()

    def normalize(self, backbone: PreTrainedModel, stage: str, feature_map: torch.Tensor) -> torch.Tensor:
        return feature_map


FAMILIES: dict[str, Family] = {
    "resnet": Family("embedder", "encoder.stages"),
    "convnext": Family("embeddings", "encoder.stages"),
    "convnextv2": Family("embeddings", "encoder.stages"),
    "pvt_v2": Pvt("", "encoder.layers"),
    "swin": Swin("swin.embeddings", "swin.encoder.layers", unused=("swin.layernorm",)),
    "swinv2": SwinV2("embeddings", "encoder.layers"),
}
PYRAMID = Pyramid("encoder.stem", "encoder.stages")


def family_of(backbone: PreTrainedModel) -> Family:
    """How to take `backbone` apart; a `ValueError` that lists what is known otherwise."""
    if isinstance(backbone, PyramidBackboneMixin):
        return PYRAMID
    model_type = backbone.config.model_type
    if model_type not in FAMILIES:
        raise ValueError(
            f"Composite backbones are made of {', '.join(FAMILIES)} and of backbones built on `PyramidBackboneMixin`, not of {model_type}"
        )
    return FAMILIES[model_type]
