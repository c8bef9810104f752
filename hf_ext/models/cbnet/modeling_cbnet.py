"""CBNetV2: identical backbones one after another, each fed with the maps of the one before.

Paper: "CBNet: A Composite Backbone Network Architecture for Object Detection" (arXiv 2107.00420, IEEE TIP 31).
Reference: VDIGPKU/CBNetV2, mmdet/models/backbones/cbnet.py, necks/cbnet_fpn.py; written from the paper and from outputs, not from
that code.

Where the port differs on purpose: the reference composes two Swins or two ResNets; here it is two or more backbones of every family in
`hf_ext.layers.stages`, each assistant linked to the backbone after it. The lead has no parameters that nothing uses (the reference's second
ResNet keeps the stem's BatchNorm). The pyramid of the assistants is computed in training or on request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.initialization import init_conv_as_torch
from hf_ext.layers.inputs import check_images
from hf_ext.layers.stages import family_of

from .configuration_cbnet import CompositeBackboneConfig


@dataclass
class CompositeBackboneOutput(BackboneOutput):
    """
    Args:
        feature_maps: the lead's maps, one for each of `out_features` (or level of the pyramid).
        hidden_states: on request, the stem's map and the lead's map after each stage, before any norm.
        assistant_feature_maps: the same of the assistants, one assistant after the other in one tuple.
    """

    assistant_feature_maps: tuple[torch.Tensor, ...] | None = None


# Layers with initial values of their own are classes of their own: `_init_weights` sees only modules that hold parameters.
class LinkConv(nn.Conv2d):
    pass


class PyramidConv(nn.Conv2d):
    pass


class LinkNorm(nn.Module):
    """BatchNorm that uses its running statistics always. Not an `nn.BatchNorm2d`, so that detectors which freeze the BatchNorm of
    their backbone leave the links trainable."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class CompositeLink(nn.Module):
    """From a map of the assistant to the width and size of an input of the next backbone: 1x1 convolution, norm, enlargement."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool):
        super().__init__()
        self.conv = LinkConv(in_channels, out_channels, 1, bias=not norm)
        self.norm = LinkNorm(out_channels) if norm else nn.Identity()

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(feature_map))


class CompositeLinks(nn.Module):
    """Dense higher-level composition (section III-B): what is added to the input of each stage is the sum of the assistant's maps of
    that stage and all after it.

    A map that has the shape of the input already is taken as it is.

    Args:
        sources: channels of the assistant's maps.
        targets: channels of the inputs of the next backbone's stages.
        first: stages before it get nothing.
        same_shape: whether a stage's map has the shape of its input.
    """

    def __init__(self, sources: list[int], targets: list[int], first: int, same_shape: bool, norm: bool):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.Identity() if same_shape and source == index else CompositeLink(sources[source], width, norm)
                for source in range(index, len(sources))
                if index >= first
            )
            for index, width in enumerate(targets)
        )

    def forward(self, index: int, x: torch.Tensor, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """The input `x` of stage `index`, with the assistant's maps of this stage and all after it added."""
        for link, feature_map in zip(self.stages[index], feature_maps):
            x = x + resize(link(feature_map), x.shape[2:])
        return x


def resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The map in another size, by the nearest pixel."""
    return feature_map if feature_map.shape[2:] == size else nn.functional.interpolate(feature_map, size=tuple(size))


class FeaturePyramid(nn.Module):
    """FPN (Lin et al., 2017) without norms and activations; levels beyond the maps are every second pixel of the level before."""

    def __init__(self, in_channels: list[int], out_channels: int, num_levels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(PyramidConv(width, out_channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(PyramidConv(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        self.num_levels = num_levels

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        levels = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + resize(levels[index], levels[index - 1].shape[2:])
        levels = [conv(level) for conv, level in zip(self.fpn_convs, levels)]
        while len(levels) < self.num_levels:
            levels.append(nn.functional.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)


class CompositePreTrainedModel(PreTrainedModel):
    config_class = CompositeBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["CompositeLink"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LinkNorm):
            init.constant_(module.weight, 0.0 if self.config.zero_init else 1.0)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, LinkConv):
            init_conv_as_torch(module)
            if self.config.zero_init and module.bias is not None:  # otherwise the norm after it is zero
                init.zeros_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, PyramidConv):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)


class CompositeBackbone(BackboneMixin, CompositePreTrainedModel):
    """Two or more backbones in a row as the backbone of a detector or a segmenter; the last one's maps go to the head.

    To start from trained backbones, use `from_backbones`. For assistant supervision, see `hf_ext.training.cbnet`.
    """

    has_attentions = False

    def __init__(self, config: CompositeBackboneConfig):
        super().__init__(config)
        stages = config.stage_names[1:]
        linked = [name for i, name in enumerate(stages) if i >= config.prune_stages or name in config.out_features]
        returned = [name for name in stages if name in config.out_features]
        # the stages whose maps are read, of each backbone
        self.read = [linked] * (config.num_backbones - 1) + [returned or stages[-1:]]
        self.backbones = nn.ModuleList(_build(config.backbone_config, names) for names in self.read)
        family = self.family = family_of(self.backbones[0])
        self.num_features = family.widths(self.backbones[0])
        self.links = nn.ModuleList(
            CompositeLinks(
                self.num_features[1:],
                family.input_widths(backbone),
                config.prune_stages,
                family.halves_last,
                config.link_norm,
            )
            for backbone in self.backbones[1:]
        )
        for index, backbone in enumerate(self.backbones):
            family.remove(backbone, stem=index > 0, stages=config.prune_stages if index else 0)
        if not config.embedding_norm:
            if config.backbone_config.model_type != "swin":
                raise ValueError("`embedding_norm` can be False for Swin only")
            self.backbones[0].swin.embeddings.norm = nn.Identity()
        if not family.checkpoints_itself(self.backbones[0]):
            self.gradient_checkpointing = False
        self._given: tuple[torch.Tensor, ...] | None = None
        self.post_init()
        for module in self._frozen():
            module.requires_grad_(False)

    @classmethod
    def from_backbones(
        cls, *backbones: str | PathLike | PreTrainedModel, num_backbones: int = 2, **fields: Any
    ) -> "CompositeBackbone":
        """A composite of trained backbones.

        Args:
            backbones: folders or Hub names of checkpoints, or backbones that return all their stages. One is used for every place,
                several are taken in order, assistants first.
            num_backbones: how many places there are for one backbone.
            fields: of the configuration.

        Raises:
            ValueError: none given, several that are not of one shape, or a backbone without some of the weights.
        """
        if not backbones:
            raise ValueError("`from_backbones` needs one backbone or more")
        sources = [source if isinstance(source, PreTrainedModel) else _load(source) for source in backbones]
        if len(sources) == 1:
            sources *= num_backbones
        config = CompositeBackboneConfig(
            backbone_config=deepcopy(sources[0].config), num_backbones=len(sources), **fields
        )
        model = cls(config)
        for index, (backbone, source) in enumerate(zip(model.backbones, sources)):
            given, own = source.state_dict(), backbone.state_dict()
            problems = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
            if problems:
                raise ValueError(f"Backbone {index} lacks these weights, or has them in another shape: {problems}")
            backbone.load_state_dict({name: given[name] for name in own})
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.family.first_parts(self.backbones[0], 1)[0]

    def train(self, mode: bool = True) -> "CompositeBackbone":
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        count = self.config.frozen_stages
        return [] if count < 0 else [m for b in self.backbones for m in self.family.first_parts(b, count)]

    @contextmanager
    def giving(self, feature_maps: tuple[torch.Tensor, ...]) -> Iterator[None]:
        """Inside, the backbone returns these maps whatever the image: a detector's head runs on the maps of an assistant."""
        self._given = feature_maps
        try:
            yield
        finally:
            self._given = None

    @capture_outputs(tie_last_hidden_states=False)  # of nothing: it keeps the hooks of the backbones idle
    def forward(
        self, pixel_values: torch.Tensor | None = None, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> CompositeBackboneOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), normalized, of any size that the backbone takes.
            output_hidden_states: whether `hidden_states` are returned.

        Returns:
            `feature_maps`, for each of `out_features` the lead's map (B, C, H / stride, W / stride), and `assistant_feature_maps`.

        Raises:
            ValueError: not four axes, another number of channels, or no pixels.
        """
        if self._given is not None:
            return CompositeBackboneOutput(feature_maps=self._given)
        check_images(pixel_values, self.config.num_channels)
        embedding = self.family.stem(self.backbones[0], pixel_values.to(self.dtype))
        returned: list[tuple[torch.Tensor, ...]] = []
        run = maps = None
        for index, backbone in enumerate(self.backbones):
            run = self._run(backbone, embedding, self.links[index - 1] if index else None, run, maps)
            maps = {
                name: self.family.normalize(backbone, name, feature_map)
                for name, feature_map in zip(self.stage_names[1:], run.feature_maps)
                if name in self.read[index]
            }
            returned.append(tuple(embedding if name == "stem" else maps[name] for name in self.out_features))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return CompositeBackboneOutput(
            feature_maps=returned[-1],
            hidden_states=(embedding, *run.feature_maps) if output_hidden_states else None,
            assistant_feature_maps=tuple(feature_map for assistant in returned[:-1] for feature_map in assistant),
        )

    def _run(
        self,
        backbone: PreTrainedModel,
        embedding: torch.Tensor,
        links: CompositeLinks | None,
        assistant: "Run | None",
        assistant_maps: dict[str, torch.Tensor] | None,
    ) -> "Run":
        """One backbone, after its assistant where it has one."""
        run = Run([], [embedding])
        for index in range(len(self.stage_names) - 1):
            if assistant is not None and index < self.config.prune_stages:
                feature_map, following = assistant.feature_maps[index], assistant.inputs[index + 1]
            else:
                x = run.inputs[-1]
                if assistant is not None:
                    x = links(index, x, [assistant_maps[name] for name in self.stage_names[index + 1 :]])
                feature_map, following = self._stage(backbone, index, x)
            run.feature_maps.append(feature_map)
            run.inputs.append(following)
        return run

    def _stage(self, backbone: PreTrainedModel, index: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training and getattr(self, "gradient_checkpointing", False):
            return self._gradient_checkpointing_func(self.family.stage, backbone, index, x)
        return self.family.stage(backbone, index, x)


class Run(NamedTuple):
    """What one backbone computed: the map of each stage before any norm, and what each stage took (one more at the end)."""

    feature_maps: list[torch.Tensor]
    inputs: list[torch.Tensor]


def _build(config: PreTrainedConfig, out_features: list[str]) -> PreTrainedModel:
    """The backbone with norms for the maps that are read, and no others."""
    config = deepcopy(config)
    config.out_features = out_features
    return AutoBackbone.from_config(config)


def _load(name: str | PathLike) -> PreTrainedModel:
    """A trained backbone that returns all its stages."""
    config = AutoConfig.from_pretrained(name)
    config.out_features = [stage for stage in config.stage_names if stage != "stem"]
    # `AutoBackbone.from_pretrained` takes no folders
    return AutoBackbone._model_mapping[type(config)].from_pretrained(name, config=config)


class CompositeBackboneWithPyramid(CompositePreTrainedModel):
    """A composite backbone and the feature pyramid that all its branches share, ready for a two-stage detector's heads."""

    def __init__(self, config: CompositeBackboneConfig):
        super().__init__(config)
        self.backbone = CompositeBackbone(config)
        if config.num_pyramid_levels < len(config.out_features):
            raise ValueError(
                f"`num_pyramid_levels` must be at least the number of maps, {len(config.out_features)}, not {config.num_pyramid_levels}"
            )
        self.neck = FeaturePyramid(self.backbone.channels, config.pyramid_size, config.num_pyramid_levels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_assistant_feature_maps: bool | None = None,
        **kwargs: Any,
    ) -> CompositeBackboneOutput:
        """
        Args:
            pixel_values: (B, channels, H, W), as for `CompositeBackbone`.
            output_assistant_feature_maps: whether the assistants' pyramids are computed; in training only when left out.

        Returns:
            `feature_maps`, the lead's `num_pyramid_levels` maps (B, pyramid_size, H / stride, W / stride), and
            `assistant_feature_maps`, the same of each assistant, one after the other.

        Raises:
            ValueError: as for `CompositeBackbone`.
        """
        outputs: CompositeBackboneOutput = self.backbone(pixel_values, **kwargs)
        if output_assistant_feature_maps is None:
            output_assistant_feature_maps = self.training
        assistants = None
        if output_assistant_feature_maps:
            count = len(outputs.feature_maps)
            branches = [
                outputs.assistant_feature_maps[i : i + count]
                for i in range(0, len(outputs.assistant_feature_maps), count)
            ]
            assistants = tuple(level for maps in branches for level in self.neck(maps))
        return CompositeBackboneOutput(
            feature_maps=self.neck(outputs.feature_maps),
            hidden_states=outputs.hidden_states,
            assistant_feature_maps=assistants,
        )


__all__ = [
    "CompositeBackbone",
    "CompositeBackboneOutput",
    "CompositeBackboneWithPyramid",
    "CompositePreTrainedModel",
]
