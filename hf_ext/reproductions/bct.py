"""BCT without retraining: what rounding costs a digit classifier, and the size of BERT-base in the paper's setting."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification
from transformers.utils.logging import tqdm

from hf_ext.data.digits import handwritten_digits
from hf_ext.quantizers import BCTConfig, quantize_model

from . import Experiment, Row, Run

DATASET = "scikit-learn digits"
OUTLIERS, OUTLIER = 4, 64.0  # of 128 channels, and how much larger they are
PAPER = {("bct_int4_8", 64): "7.988"}


def digits(run: Run) -> list[Row]:
    """A ViT trained in float32 on four fifths of the digits, rounded in each way: accuracy on the rest and error of the logits, for the
    network as it is and with outlier channels."""
    (images, labels), (held_out, answers) = (
        (_pixels(images), torch.tensor(labels)) for images, labels in handwritten_digits()
    )
    model = trained(run, images, labels)
    expected = _logits(model, held_out)
    accuracy = (expected.argmax(-1) == answers).float().mean().item()
    rows = [Row(f"accuracy on {len(answers)} digits not trained on, float32", accuracy)]
    for suffix, network in (("", model), (", outlier channels", with_outliers(model))):
        for name, rounded in tqdm(ways(network).items(), desc=f"ways to round{suffix}"):
            logits = _logits(rounded(), held_out)
            share = (logits.argmax(-1) == answers).float().mean().item()
            error = ((logits - expected).square().mean() / expected.square().mean()).sqrt().item()
            note = f"{100 * (accuracy - share):+.2f} points lost; error of the logits {error:.3f}"
            ours = {"dataset": DATASET, "metric_type": "accuracy"} if name.startswith("bct") and not suffix else {}
            rows.append(Row(f"accuracy, {name}{suffix}", share, note=note, **ours))
    return rows


@torch.no_grad()
def with_outliers(model: nn.Module) -> nn.Module:
    """The same function: some channels that leave a norm are larger, as in large models, and what reads them has smaller weights."""
    copy = deepcopy(model)
    for layer in copy.vit.layers:
        attention = layer.attention
        for norm, readers in (
            (layer.layernorm_before, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.layernorm_after, (layer.mlp.fc1,)),
        ):
            for parameter in norm.parameters():
                parameter[:OUTLIERS] *= OUTLIER
            for reader in readers:
                reader.weight[:, :OUTLIERS] /= OUTLIER
    return copy


def ways(model: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Name -> the rounded model. What is compared with rounds the weights of linear layers, and their inputs with one scale a batch."""
    found: dict[str, Callable[[], nn.Module]] = {
        "int8, one scale a matrix": lambda: with_scales(model, 8, None),
        "int8, one scale an output": lambda: with_scales(model, 8, 1),
        "bct_int8, blocks of 64": lambda: quantize_model(model, BCTConfig.from_preset("bct_int8")),
    }
    for block in (16, 64, 128):
        config = BCTConfig.from_preset("bct_int4_8", block_size=block)
        found[f"bct_int4_8, blocks of {block}"] = lambda config=config: quantize_model(model, config)
    weights_alone = BCTConfig.from_preset("bct_int4_8", activation_bits=None)
    return found | {
        "bct_int4_8, weights alone": lambda: quantize_model(model, weights_alone),
        "int4, one scale a matrix, inputs in int8": lambda: with_scales(model, 4, None),
    }


@torch.no_grad()
def with_scales(model: nn.Module, bits: int, dim: int | None) -> nn.Module:
    """A copy whose linear layers, the head apart, have rounded weights and round their inputs to int8: largest / (2^(bits-1) - 1) a step"""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    for name, layer in copy.named_modules():
        if isinstance(layer, nn.Linear) and name != "classifier":
            layer.weight.copy_(_rounded(layer.weight, bits, dim))
            layer.register_forward_pre_hook(lambda _, inputs: _rounded(inputs[0], 8, None))
    return copy.eval()


def _rounded(x: torch.Tensor, bits: int, dim: int | None) -> torch.Tensor:
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    step = largest.clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (x / step).round() * step


def trained(run: Run, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    from .training import TensorDataset, train

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.1,
        num_labels=10,
    )
    return train(
        run,
        ViTForImageClassification(config),
        TensorDataset(pixel_values=images, labels=labels),
        num_train_epochs=int(run.options["epochs"]),
        save_steps=250,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
    )


def _pixels(images: list) -> torch.Tensor:
    """(images, 1, 8, 8) from -1 to 1"""
    return torch.stack([torch.tensor(list(image.getdata())).view(1, 8, 8) for image in images]) / 127.5 - 1


@torch.inference_mode()
def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=images).logits


def size(run: Run) -> list[Row]:
    """BERT-base with two labels and random weights: its file in float32 over its file in blockwise integers."""
    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig()).eval()
    before = file_bytes(dense)
    rows = [Row("parameters", dense.num_parameters())]
    settings = [("bct_int4_8", block) for block in (16, 32, 64, 128)] + [("bct_int8", 64)]
    for preset, block in tqdm(settings, desc="settings"):
        ratio = before / file_bytes(quantize_model(dense, BCTConfig.from_preset(preset, block_size=block)))
        rows.append(Row(f"times smaller on disk, {preset}, blocks of {block}", ratio, PAPER.get((preset, block), "")))
    return rows


def file_bytes(model: nn.Module) -> int:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


EXPERIMENTS = {
    "digits": Experiment(
        "What blockwise integers cost a ViT trained on digits",
        digits,
        minutes=3,
        options={"epochs": (40, "of training")},
    ),
    "size": Experiment("BERT-base on disk", size, minutes=1),
}
