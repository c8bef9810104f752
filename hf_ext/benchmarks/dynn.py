"""The shipped digit classifier with its exits against the same network without, one thread.

The threshold is the paper's: the cheapest that keeps 95 % of the accuracy, chosen on digits that are in no contest. With `--reference`, a
checkout of Sanghyun-Hong/DeepSloth, also against the authors' `early_exit`, which serves one sample at a time, and their PGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hf_ext.catalog import METHODS
from hf_ext.convert import convert_checkpoint
from hf_ext.models.dynn import MultiExitForImageClassification
from hf_ext.models.dynn.networks import MapExit
from hf_ext.reproductions.dynn import Digits
from hf_ext.robustness import choose_threshold, pgd_avg

from . import Contest
from .references import load_module

REPOSITORY = "Sanghyun-Hong/DeepSloth"
SAMPLES = 64
ARGUMENTS = {
    "network": "ResNet_SDN",
    "num_blocks": [9, 9, 9],
    "num_classes": 10,
    "input_size": 32,
    "block_type": "basic",
    "augment_training": False,
    "init_weights": True,
    "add_output": [[0, 0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1, 0, 0, 0]],
}
ATTACK = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 2}


def contests(reference: Path | None = None) -> Iterator[Contest]:
    data = Digits()
    images = data.test[0][:SAMPLES].contiguous()
    model = MultiExitForImageClassification.from_pretrained(METHODS["dynn"].card).eval()
    model.config.threshold = choose_threshold(model, *data.validation).value
    for size, name in ((1, "one by one"), (SAMPLES, "in one batch")):
        ours, peer = (partial(serve, model, images.split(size), mode) for mode in ("dynamic", "final"))
        yield Contest(f"{SAMPLES} digits {name}", ours, peer, "the final classifier", threads=1)
    if reference is not None:
        yield from against_the_authors(reference, images)


@torch.no_grad()
def serve(model: nn.Module, batches: tuple[torch.Tensor, ...], exit_mode: str) -> None:
    for batch in batches:
        model(batch, exit_mode=exit_mode)


def against_the_authors(reference: Path, images: torch.Tensor) -> Iterator[Contest]:
    """ResNet-56 with random weights, at a threshold at which half of the samples leave at the first exit."""
    network, attack = load_reference(reference)
    torch.manual_seed(0)
    peer = network(ARGUMENTS).eval()
    ours = convert_checkpoint("dynn", peer.state_dict(), ARGUMENTS)
    with torch.no_grad():
        confidence = ours(images, exit_mode="all").exit_logits[0].softmax(-1).amax(-1)
    peer.confidence_threshold = ours.config.threshold = confidence.median().item()
    batches = (images,), images.split(1)
    yield Contest(
        f"ResNet-56, {SAMPLES} images at a threshold",
        partial(serve, ours, batches[0], "dynamic"),
        partial(one_by_one, peer, batches[1]),
        "DeepSloth early_exit",
        threads=1,
    )
    few, labels = images[:8], torch.arange(8)
    keywords = {"eps": ATTACK["epsilon"], "gamma": ATTACK["step_size"], "steps": ATTACK["steps"]}
    theirs: Callable[..., Any] = partial(
        attack.PGD_avg, preds=None, loss_fn=nn.CrossEntropyLoss(), model=peer, **keywords
    )
    yield Contest(
        "ResNet-56, pgd_avg of 8 images, 2 steps",
        partial(pgd_avg, ours, few, labels, **ATTACK),
        partial(theirs, few, y=labels),
        "DeepSloth PGD_avg",
        threads=1,
    )


@torch.no_grad()
def one_by_one(model: nn.Module, batches: tuple[torch.Tensor, ...]) -> None:
    for batch in batches:
        model.early_exit(batch)


def load_reference(folder: Path) -> tuple[type[nn.Module], ModuleType]:
    """The authors' ResNet and their attacks. Their `utils`, which imports plotting, is stood in for, with the same arithmetic."""
    utils = {
        "Flatten": nn.Flatten,
        "InternalClassifier": lambda size, channels, num_classes: MapExit(channels, size, num_classes),
    }
    training = dict.fromkeys(("sdn_train", "sdn_test", "sdn_advtrain"))
    network = load_module(REPOSITORY, folder, "networks/SDNs/ResNet_SDN.py", {"utils": utils, "model_funcs": training})
    return network.ResNet_SDN, load_module(REPOSITORY, folder, "attacks/PGDs.py")
