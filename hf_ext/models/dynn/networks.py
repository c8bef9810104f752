"""What exits are put on: networks that run block by block.

A network starts a batch (`start`), runs its blocks one at a time (`run`), shows what an exit reads after the last block that ran
(`features`), and answers (`finish`). Between the calls all that belongs to the samples is in a `State`, so that samples may leave it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_ext.layers.convolution import PointwiseConv2d
from hf_ext.layers.inputs import check_images
from hf_ext.layers.stages import family_of

from .configuration_dynn import MultiExitConfig


@dataclass
class State:
    """A batch on its way: what the next block takes, and tensors that stay with it, such as a mask."""

    hidden_states: torch.Tensor
    extras: dict[str, Any] = field(default_factory=dict)

    def select(self, index: torch.Tensor) -> "State":
        """The samples at `index`. Extras whose first axis is no batch, such as positions shared by all samples, stay as they are."""
        batch = len(self.hidden_states)

        def pick(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(map(pick, x))
            return x.index_select(0, index) if isinstance(x, torch.Tensor) and len(x) == batch else x

        return State(pick(self.hidden_states), {name: pick(x) for name, x in self.extras.items()})


class MapExit(nn.Module):
    """SDN's internal classifier on a map: a learned mixture of max- and average-pooling down to about 4x4, then a linear layer.

    Args:
        size: edge of the map; maps smaller than 4 are not pooled. None: a map of any size, pooled to one vector.
    """

    def __init__(self, channels: int, size: int | None, num_labels: int):
        super().__init__()
        self.kernel_size = None if size is None else size // 4
        if self.kernel_size != 0:
            self.alpha = nn.Parameter(torch.rand(1))
        cells = 1 if size is None else size // (self.kernel_size or 1)
        self.linear = nn.Linear(channels * cells**2, num_labels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, num_labels)"""
        if self.kernel_size != 0:
            kernel = self.kernel_size or feature_map.shape[2:]
            largest = nn.functional.max_pool2d(feature_map, kernel)
            feature_map = self.alpha * largest + (1 - self.alpha) * nn.functional.avg_pool2d(feature_map, kernel)
        return self.linear(feature_map.flatten(1))


class Network(nn.Module):
    """The interface, and what most share of it. Its parts are `blocks`, of which `run` calls one, `input_embeddings`, which takes the
    input, and `exit(block, num_labels)`, an untrained exit for the output of that block."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def run(self, block: int, state: State) -> State:
        return State(self.blocks[block](state.hidden_states), state.extras)

    def features(self, state: State) -> torch.Tensor:
        return state.hidden_states


class ConvNet(Network):
    """A family of Shallow-Deep Networks: a stem, blocks that map a map to a map, a head. `shapes` are (channels, edge) after each block;
    no edge: vectors."""

    def __init__(self, config: MultiExitConfig):
        super().__init__()
        self.num_channels, self.image_size = config.num_channels, config.image_size
        self.blocks = nn.ModuleList()
        self.shapes: list[tuple[int, int | None]] = []

    def exit(self, block: int, num_labels: int) -> nn.Module:
        channels, size = self.shapes[block]
        return MapExit(channels, size, num_labels) if size else nn.Linear(channels, num_labels)

    @property
    def input_embeddings(self) -> nn.Module:
        return self.stem

    def start(self, pixel_values: torch.Tensor | None) -> State:
        check_images(pixel_values, self.num_channels)
        if tuple(pixel_values.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(
                f"`pixel_values` must be {self.image_size}x{self.image_size} (`image_size`), not {tuple(pixel_values.shape[2:])}"
            )
        return State(self.stem(pixel_values.to(self.dtype)))

    def finish(self, state: State) -> torch.Tensor:
        return self.head(state.hidden_states)


class PlainBlock(GradientCheckpointingLayer):
    """Layers one after the other"""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden_states)


class ResidualBlock(GradientCheckpointingLayer):
    """The basic block of ResNet up to its last ReLU, before which the exits read. The shortcut is the identity, or a 1x1 convolution where
    the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(in_channels, out_channels, stride), nn.ReLU(), *convolution(out_channels, out_channels)
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden_states) + self.shortcut(hidden_states)


def convolution(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    """3x3 without bias, and its BatchNorm"""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def halved(size: int, stride: int) -> int:
    """The edge of a map after a padded 3x3 convolution"""
    return (size - 1) // stride + 1


class VGG(ConvNet):
    """Convolutions, some followed by max-pooling, then fully connected layers; each of them is a block, the last of the latter the head."""

    def __init__(self, config: MultiExitConfig):
        super().__init__(config)
        channels, size = config.num_channels, config.image_size
        self.stem = nn.Identity()
        for width, stride in zip(config.hidden_sizes, config.strides):
            norm = [nn.BatchNorm2d(width)] if config.batch_norm else []
            pool = [nn.MaxPool2d(stride)] if stride > 1 else []
            self.blocks.append(PlainBlock(nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU(), *pool))
            channels, size = width, size // stride
            self.shapes.append((channels, size))
        width = channels * size**2
        for index, next_width in enumerate(config.fc_sizes[:-1]):
            flatten = [] if index else [nn.Flatten()]
            self.blocks.append(PlainBlock(*flatten, nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(0.5)))
            width = next_width
            self.shapes.append((width, None))
        flatten = [] if len(config.fc_sizes) > 1 else [nn.Flatten()]
        last = config.fc_sizes[-1]
        self.head = nn.Sequential(*flatten, nn.Linear(width, last), nn.Dropout(0.5), nn.Linear(last, config.num_labels))


class ResNet(ConvNet):
    """Basic blocks; every stage but the first halves the map."""

    def __init__(self, config: MultiExitConfig):
        super().__init__(config)
        channels, stride = config.stem_size, 2 if config.image_size > 32 else 1
        size = halved(config.image_size, stride)
        self.stem = nn.Sequential(*convolution(config.num_channels, channels, stride), nn.ReLU())
        for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths)):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                self.blocks.append(ResidualBlock(channels, width, stride))
                channels, size = width, halved(size, stride)
                self.shapes.append((channels, size))
        self.head = nn.Sequential(nn.AvgPool2d(size), nn.Flatten(), nn.Linear(channels, config.num_labels))

    def run(self, block: int, state: State) -> State:
        summed = self.blocks[block](state.hidden_states)
        return State(nn.functional.relu(summed), {"map": summed})

    def features(self, state: State) -> torch.Tensor:
        return state.extras["map"]


class MobileNet(ConvNet):
    """Depthwise and pointwise convolutions."""

    def __init__(self, config: MultiExitConfig):
        super().__init__(config)
        channels, size = config.stem_size, config.image_size
        self.stem = nn.Sequential(*convolution(config.num_channels, channels), nn.ReLU())
        for width, stride in zip(config.hidden_sizes, config.strides):
            depthwise = (*convolution(channels, channels, stride, groups=channels), nn.ReLU())
            pointwise = (PointwiseConv2d(channels, width, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            self.blocks.append(PlainBlock(*depthwise, *pointwise))
            channels, size = width, halved(size, stride)
            self.shapes.append((channels, size))
        self.head = nn.Sequential(nn.AvgPool2d(size), nn.Flatten(), nn.Linear(channels, config.num_labels))


class MapNetwork(Network):
    """Any `AutoBackbone`: its stages are the blocks, the final classifier a linear layer on the mean of the last map.

    Backbones that `hf_ext.layers.stages` can take apart run stage by stage. Others run as a whole at the start, so their exits tell
    confidence but save no time.
    """

    def __init__(self, config: MultiExitConfig):
        super().__init__()
        backbone_config = config.backbone_config
        stages = [name for name in backbone_config.stage_names if name != "stem"]
        read = [name for name, placed in zip(stages, config.exits) if placed or name == stages[-1]]
        backbone_config.out_features = read
        self.backbone = AutoBackbone.from_config(backbone_config)
        self.stage_names, self.read = stages, read
        self.num_channels = getattr(backbone_config, "num_channels", 3)
        self.channels = dict(zip(read, self.backbone.channels))
        try:
            self.family = family_of(self.backbone)
        except ValueError:
            self.family = None
        else:
            self.family.remove(self.backbone, stem=False, stages=0)
        self.checkpoints_itself = any(isinstance(m, GradientCheckpointingLayer) for m in self.backbone.modules())
        self.head = nn.Linear(self.channels[stages[-1]], config.num_labels)

    def exit(self, block: int, num_labels: int) -> nn.Module:
        return MapExit(self.channels[self.stage_names[block]], None, num_labels)

    @property
    def input_embeddings(self) -> nn.Module:
        return self.backbone

    def start(self, pixel_values: torch.Tensor | None) -> State:
        check_images(pixel_values, self.num_channels)
        pixel_values = pixel_values.to(self.dtype)
        if self.family is None:
            maps = self.backbone(pixel_values).feature_maps
            return State(maps[0], dict(zip(self.read, maps)))
        return State(self.family.stem(self.backbone, pixel_values))

    def run(self, block: int, state: State) -> State:
        name = self.stage_names[block]
        if self.family is None:
            return State(state.extras.get(name, state.hidden_states), state.extras)
        feature_map, following = self.family.stage(self.backbone, block, state.hidden_states)
        if name in self.read:
            feature_map = self.family.normalize(self.backbone, name, feature_map)
        return State(following, {"map": feature_map})

    def features(self, state: State) -> torch.Tensor:
        return state.extras.get("map", state.hidden_states)

    def finish(self, state: State) -> torch.Tensor:
        return self.head(self.features(state).mean((2, 3)))

    def load_base(self, classifier: PreTrainedModel) -> None:
        """The weights of a classifier that is this backbone, a mean and a linear layer."""
        given = classifier.base_model.state_dict()
        self.backbone.load_state_dict({name: given[name] for name in self.backbone.state_dict()})
        self.head.load_state_dict(classifier.classifier[-1].state_dict())


NETWORKS = {"vgg16bn": VGG, "resnet56": ResNet, "mobilenet": MobileNet, "backbone": MapNetwork}
