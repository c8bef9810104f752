"""Models at 0.6 of their operations against the whole ones, and the ranking against a plain loop over the units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.surgery import apply
from hf_ext.surgery.optin import Optin, search
from hf_ext.surgery.trajectory import Scores, costs_of, log_probabilities, logit_loss, manifold_loss, rank
from hf_ext.surgery.units import prunable, units

from . import Contest

FLOPS = 0.6
LAYERS = {"num_hidden_layers": 6}  # of the base models' width, 768


def contests(reference: Path | None = None) -> Iterator[Contest]:
    """BERT and ViT of base width with 6 layers, Swin-T and SegFormer-B1, one thread.

    What is pruned is left to chance: it makes no difference to the speed.
    """
    torch.manual_seed(0)
    bert = BertForSequenceClassification(BertConfig(**LAYERS)).eval()
    vit = ViTForImageClassification(ViTConfig(**LAYERS)).eval()
    swin = SwinForImageClassification(SwinConfig()).eval()
    segformer = SegformerForSemanticSegmentation(SegformerConfig(hidden_sizes=[64, 128, 320, 512])).eval()
    ids, image = torch.randint(0, bert.config.vocab_size, (8, 128)), torch.randn(1, 3, 224, 224)
    for name, dense, batch in (
        ("BERT, 128 tokens", bert, {"input_ids": ids[:1]}),
        ("BERT, 8 x 128 tokens", bert, {"input_ids": ids}),
        ("ViT, 224 x 224", vit, {"pixel_values": image}),
        ("Swin-T, 224 x 224", swin, {"pixel_values": image}),
        ("SegFormer-B1, 224 x 224", segformer, {"pixel_values": image}),
    ):
        ours, peer = (runner(model, batch) for model in (apply(dense, by_chance(dense, batch)), dense))
        yield Contest(f"{name}, {FLOPS} of the operations", ours, peer, "dense model", threads=1)
    yield ranking()


def runner(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    @torch.no_grad()
    def run() -> Any:
        return model(**batch)

    return run


@torch.no_grad()
def by_chance(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Optin:
    """What `search` keeps when importance is random, and on the average as large as the operations"""
    costs = costs_of(model, batch)
    family, layers = prunable(model)
    heads, neurons = (
        [-macs * torch.rand(units(layer, branch), dtype=torch.float64) for layer, macs in zip(layers, all_macs)]
        for branch, all_macs in ((family.attention, costs["head_macs"]), (family.mlp, costs["neuron_macs"]))
    )
    return search(Scores(heads, neurons, **costs), FLOPS)


def ranking() -> Contest:
    """Every head and neuron of a small ViT on 64 images, scored by `rank` and by one pass of the whole model for each"""
    config = ViTConfig(
        image_size=8, patch_size=2, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    model = ViTForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(64, 3, 8, 8)}
    return Contest(
        "rank 272 heads and neurons",
        lambda: rank(model, batch),
        lambda: one_by_one(model, batch),
        "a pass of the whole model for each",
        threads=1,
    )


@torch.no_grad()
def one_by_one(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> list[float]:
    """The sums of MMD and KL, unit by unit"""
    family, layers = prunable(model)
    features: list[torch.Tensor] = []
    handles = [
        layer.get_submodule(family.attention.norm_in).register_forward_hook(lambda *args: features.append(args[2]))
        for layer in layers
    ]
    whole, teachers = log_probabilities(model(**batch)), list(features)
    losses = []
    for number, layer in enumerate(layers):
        for branch in (family.attention, family.mlp):
            count = units(layer, branch)
            for mask in 1 - torch.eye(count):
                features.clear()

                def hide(module: Any, args: tuple, mask: torch.Tensor = mask) -> tuple:
                    return ((args[0].unflatten(-1, (len(mask), -1)) * mask[:, None]).flatten(-2),)

                handle = layer.get_submodule(branch.output).register_forward_pre_hook(hide)
                kl = logit_loss(whole, log_probabilities(model(**batch)))
                handle.remove()
                later = range(number + 1, len(layers))
                losses.append(sum(manifold_loss(teachers[i], features[i]).item() for i in later) + kl.item())
    for handle in handles:
        handle.remove()
    return losses
