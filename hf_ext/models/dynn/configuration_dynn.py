"""Configuration of multi-exit classifiers, "Dynamic Neural Network is All You Need: Understanding the Robustness of Dynamic Mechanisms
in Neural Networks" (arXiv 2308.08709); the networks are those of "Shallow-Deep Networks" (arXiv 1810.07052)."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from hf_ext.layers.presets import PresetMixin

SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # where SDN places its exits, as shares of the whole network's work


@dataclass(frozen=True)
class Published:
    """What a family of Shallow-Deep Networks is made of where the configuration leaves a field out."""

    hidden_sizes: tuple[int, ...]
    exits: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    fc_sizes: tuple[int, ...] | None = None
    stem_size: int | None = None


# the exits are at 15, 30, 45, 60, 75 and 90 % of the FLOPs, as far as there are that many
PUBLISHED = {
    "vgg16bn": Published(
        hidden_sizes=(64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strides=(1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2),
        fc_sizes=(512, 512),
        exits=(0, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0),
    ),
    "resnet56": Published(
        hidden_sizes=(16, 32, 64),
        depths=(9, 9, 9),
        stem_size=16,
        exits=(0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0),
    ),
    "mobilenet": Published(
        hidden_sizes=(64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024),
        strides=(1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
        stem_size=32,
        exits=(0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0),
    ),
}
PUBLISHED_FIELDS = ("hidden_sizes", "depths", "strides", "fc_sizes", "stem_size")
WRAPPED = ("backbone", "encoder")
ALLOWED = {
    "family": (*PUBLISHED, *WRAPPED),
    "fallback": ("network_output", "most_confident"),
    "train_mode": ("sdn", "ic_only"),
    "exit_pooling": (None, "first", "mean", "last"),
}


@strict
class MultiExitConfig(PresetMixin, PreTrainedConfig):
    r"""
    A classifier with internal classifiers ("exits") after some of its blocks. The defaults are the ResNet-56 of Shallow-Deep Networks for
    CIFAR-10. Presets, all published: `vgg16bn` and `resnet56` with six exits, `mobilenet` with five, `vgg16bn-all`, `resnet56-all` and
    `mobilenet-all` with an exit after every block.

    Args:
        family: "vgg16bn", "resnet56" or "mobilenet" (of any size: the fields below), "backbone" (any `AutoBackbone`, exits on its maps) or
            "encoder" (a ViT, BERT or GPT-2 kind of classifier, exits after its layers).
        image_size: edge of the square images; 32 for CIFAR, 64 for Tiny-ImageNet. The families of Shallow-Deep Networks take no other.
        hidden_sizes: width of each convolution (VGG), stage (ResNet) or block (MobileNet); None, here and below: as published.
        depths: blocks of each stage (ResNet).
        strides: of each block (MobileNet), or of the max-pooling after each convolution (VGG).
        fc_sizes: widths of the fully connected layers (VGG); all but the last take an exit.
        stem_size: width of the first convolution (ResNet, MobileNet).
        batch_norm: whether BatchNorm follows the convolutions (VGG).
        exits: 0 or 1 for each block, flat or by stage. None: as published; in a "backbone" one after each stage but the last, in an
            "encoder" after the layers at 15, 30, 45, 60, 75 and 90 % of the depth.
        threshold: softmax probability from which a sample leaves at an exit. The paper chooses it on validation data
            (`hf_ext.robustness.choose_threshold`).
        fallback: which answer a sample gets that was confident nowhere: "network_output", the final classifier's, or "most_confident",
            that of the most confident classifier.
        train_mode: "sdn" trains everything, exits weighted; "ic_only" freezes the network, its batch statistics and dropout included,
            and trains the exits alone.
        exit_loss_weights: the largest weight of each exit's loss in "sdn". None: SDN's 0.15, 0.3, ... 0.9, for more than six exits evenly
            up to 0.9.
        backbone_config: of the "backbone", or of the classifier that an "encoder" is.
        exit_pooling: what exits of an "encoder" read: the "first" token, the "mean" of the tokens, the "last" token. None: as its own
            classifier does.
    """

    model_type = "multi_exit"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", optional=True)
    }

    family: str = "resnet56"
    num_channels: int = 3
    image_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] | None = None
    depths: list[int] | tuple[int, ...] | None = None
    strides: list[int] | tuple[int, ...] | None = None
    fc_sizes: list[int] | tuple[int, ...] | None = None
    stem_size: int | None = None
    batch_norm: bool = True
    exits: list | tuple | None = None
    threshold: float | int = 0.9
    fallback: str = "network_output"
    train_mode: str = "sdn"
    exit_loss_weights: list[float] | tuple[float, ...] | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    exit_pooling: str | None = None

    PRESETS = {
        **{family: {"family": family} for family in PUBLISHED},
        **{f"{family}-all": {"family": family, "exits": [1] * len(p.exits)} for family, p in PUBLISHED.items()},
    }

    def __post_init__(self, **kwargs: Any):
        labels_given = self.id2label is not None or kwargs.get("num_labels") is not None
        super().__post_init__(**kwargs)
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}")
        if (self.backbone_config is None) == (self.family in WRAPPED):
            given = "nothing" if self.backbone_config is None else f"a {self.backbone_config.model_type}"
            raise ValueError(
                f"`backbone_config` belongs to the families {' and '.join(WRAPPED)}: {self.family!r} was given {given}"
            )
        if not labels_given:
            self.num_labels = 10 if self.backbone_config is None else self.backbone_config.num_labels
        if self.family in PUBLISHED:
            self._fill_in()
        elif self.family == "encoder":
            self.backbone_config.id2label, self.backbone_config.label2id = self.id2label, self.label2id
        self._check()
        self.exits = self._flat_exits()
        if self.exit_loss_weights is not None and len(self.exit_loss_weights) != self.num_exits:
            raise ValueError(
                f"`exit_loss_weights` must hold a number for each of the {self.num_exits} exits, not {self.exit_loss_weights}"
            )

    @property
    def num_exits(self) -> int:
        return sum(self.exits)

    @property
    def num_blocks(self) -> int:
        """How many places for exits there are."""
        if self.family == "resnet56":
            return sum(self.depths)
        if self.family == "vgg16bn":
            return len(self.hidden_sizes) + len(self.fc_sizes) - 1
        if self.family == "mobilenet":
            return len(self.hidden_sizes)
        if self.family == "backbone":
            return sum(name != "stem" for name in getattr(self.backbone_config, "stage_names", ()))
        return getattr(self.backbone_config, "num_hidden_layers", 0)

    @property
    def largest_exit_loss_weights(self) -> list[float]:
        """max_i of the SDN objective."""
        count = max(self.num_exits, len(SHARES))
        return list(self.exit_loss_weights or (SHARES[-1] * (i + 1) / count for i in range(self.num_exits)))

    def to_diff_dict(self) -> dict[str, Any]:
        """Always with the labels: left out, two of them would be read back as ten."""
        return super().to_diff_dict() | {"id2label": self.id2label, "label2id": self.label2id}

    def _fill_in(self) -> None:
        published = PUBLISHED[self.family]
        for name in PUBLISHED_FIELDS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(published, name))
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
            values = getattr(self, name)
            if values is not None and (values == [] or min(values if isinstance(values, list) else [values]) < 1):
                raise ValueError(f"`{name}` must hold positive numbers, not {values}")
        if self.family == "resnet56" and len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"`depths` must have a number for each of the {len(self.hidden_sizes)} `hidden_sizes`, not {self.depths}"
            )
        strides, places = self.strides, len(self.hidden_sizes)
        if strides is not None and (len(strides) != places or not set(strides) <= {1, 2}):
            raise ValueError(f"`strides` must be a 1 or 2 for each of the {places} `hidden_sizes`, not {strides}")

    def _flat_exits(self) -> list[int]:
        blocks = self.num_blocks
        if self.exits is None:
            return self._default_exits(blocks)
        flat = [place for part in self.exits for place in (part if isinstance(part, list | tuple) else [part])]
        if len(flat) != blocks or not set(flat) <= {0, 1} or not any(flat):
            raise ValueError(
                f"`exits` must hold a 0 or 1 for each of the {blocks} blocks, and a 1 at least once, not {self.exits}"
            )
        return [int(place) for place in flat]

    def _default_exits(self, blocks: int) -> list[int]:
        if self.family == "backbone":
            return [1] * (blocks - 1) + [0]
        if self.family in PUBLISHED and len(PUBLISHED[self.family].exits) == blocks:
            return list(PUBLISHED[self.family].exits)
        after = {round(share * blocks) - 1 for share in SHARES}
        return [int(block in after and block < blocks - 1) for block in range(blocks)]

    def _check(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` must be a probability, from 0 to 1, not {self.threshold}")
        if self.num_labels < 2:
            raise ValueError(f"`num_labels` must be at least 2, not {self.num_labels}: confidence is between classes")
        for name in ("num_channels", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.num_blocks < 2:
            raise ValueError(f"`family` {self.family!r} needs 2 blocks or more, not {self.num_blocks}")
        halvings = (self.strides or []).count(2)
        if self.family == "vgg16bn" and self.image_size >> halvings < 1:
            raise ValueError(
                f"`image_size` must be at least {1 << halvings} for {halvings} poolings, not {self.image_size}"
            )


@strict
class MultiExitTextConfig(MultiExitConfig):
    r"""
    The same for texts: `family` is "encoder", and `backbone_config` that of a BERT, RoBERTa, GPT-2 or Llama classifier; BERT-base when left
    out.
    """

    model_type = "multi_exit_text"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    family: str = "encoder"

    PRESETS = {}

    def _check(self) -> None:
        if self.family != "encoder":
            raise ValueError(f"`family` must be 'encoder' for texts, not {self.family!r}")
        super()._check()


__all__ = ["MultiExitConfig", "MultiExitTextConfig"]
