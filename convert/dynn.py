"""Shallow-Deep Networks as yigitcankaya/Shallow-Deep-Networks and Sanghyun-Hong/DeepSloth save them.

A checkpoint is the state dict `<epoch>` or `last`; the arguments are the `parameters` dict beside it (a pickle; write it as JSON), with
`network` as the class's name. Both spellings of the exits serve, `add_ic` (Shallow-Deep Networks) and `add_output` (DeepSloth).
"""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import WeightRenaming

from hf_ext.models.dynn import MultiExitConfig

MODEL = "MultiExitForImageClassification"
NETWORKS = {"VGG_SDN": "vgg16bn", "ResNet_SDN": "resnet56", "MobileNet_SDN": "mobilenet"}
# what only training reads, and what the two repositories keep beside
UNUSED = {
    *(
        "architecture",
        "augment_training",
        "base_model",
        "doNormalization",
        "epochs",
        "gammas",
        "ic_only",
        "init_weights",
    ),
    *("learning_rate", "milestones", "momentum", "task", "weight_decay"),
}
KNOWN = {
    *("add_ic", "add_output", "block_type", "cfg", "conv_batch_norm", "conv_channels", "fc_layers", "input_size"),
    *(
        "max_pool_sizes",
        "network",
        "network_type",
        "num_blocks",
        "num_classes",
        "output_to_return_when_ICs_are_delayed",
    ),
}
FALLBACKS = {"network_output": "network_output", "most_confident_output": "most_confident"}


def family(arguments: dict[str, Any]) -> str:
    name = arguments.get("network") or arguments.get("network_type", "")
    known = {network: key for network, key in NETWORKS.items() if network == name}
    known |= {key: key for key in NETWORKS.values() if name.startswith(key.removesuffix("bn").removesuffix("56"))}
    if not known:
        raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, not {name!r}")
    return next(iter(known.values()))


def config(arguments: dict[str, Any]) -> MultiExitConfig:
    if unknown := sorted(set(arguments) - KNOWN - UNUSED):
        raise ValueError(f"Unknown arguments: {', '.join(unknown)}; known are {', '.join(sorted(KNOWN | UNUSED))}")
    if arguments.get("block_type", "basic") != "basic":
        raise ValueError(f"`block_type` must be 'basic', not {arguments['block_type']!r}")
    fields = {
        "family": family(arguments),
        "image_size": int(arguments.get("input_size", 32)),
        "num_labels": int(arguments.get("num_classes", 10)),
        "exits": arguments.get("add_output", arguments.get("add_ic")),
        "fallback": FALLBACKS[arguments.get("output_to_return_when_ICs_are_delayed", "network_output")],
    }
    structure = {
        "depths": arguments.get("num_blocks"),
        "hidden_sizes": arguments.get("conv_channels"),
        "strides": arguments.get("max_pool_sizes"),
        "fc_sizes": arguments.get("fc_layers"),
        "batch_norm": arguments.get("conv_batch_norm"),
    }
    if "cfg" in arguments:  # 64 or (128, 2): the width, and the stride where it is not 1
        blocks = [block if isinstance(block, list | tuple) else (block, 1) for block in arguments["cfg"]]
        structure |= {"hidden_sizes": [width for width, _ in blocks], "strides": [stride for _, stride in blocks]}
    return MultiExitConfig(**fields, **{name: value for name, value in structure.items() if value is not None})


def RULES(arguments: dict[str, Any]) -> list[WeightRenaming]:
    shared = [
        WeightRenaming(r"^layers\.(\d+)\.output\.", r"exits.\1."),
        WeightRenaming(r"^init_conv\.", r"network.stem."),
        WeightRenaming(r"^end_layers\.", r"network.head."),
    ]
    if family(arguments) == "resnet56":
        return [
            *shared,
            WeightRenaming(r"^layers\.(\d+)\.layers\.0\.", r"network.blocks.\1.layers."),
            WeightRenaming(r"^layers\.(\d+)\.layers\.1\.", r"network.blocks.\1.shortcut."),
        ]
    return [*shared, WeightRenaming(r"^layers\.(\d+)\.layers\.", r"network.blocks.\1.layers.")]
