"""HAT: its size and cost, what tiling changes, and the small x2 model that the card ships."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils.logging import tqdm

from hf_ext.models.hat import HatConfig, HatForImageSuperResolution, HatImageProcessor

from . import Experiment, Row, Run
from .super_resolution import measure_tiling, train_demo

MULTIPLY_ADDS = {"hat-s-x4": "54.9", "hat-x4": "102.4"}  # the authors' README, in G


def measure_cost(run: Run) -> list[Row]:
    """Parameters of all presets and, for a 64x64 image, multiply-adds of those that the authors give them for."""
    rows = []
    for name in tqdm(HatConfig.PRESETS, desc="presets"):
        with torch.device("meta"):
            model = HatForImageSuperResolution(HatConfig.from_preset(name, attn_implementation="eager")).eval()
            if name in MULTIPLY_ADDS:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    model(torch.empty(1, 3, 64, 64))
                flops = counter.get_total_flops() / 2e9
                rows.append(
                    Row(f"multiply-adds at 64x64, {name} (G)", flops, MULTIPLY_ADDS[name], note="torch's counter")
                )
        rows.append(Row(f"parameters, {name}", model.num_parameters()))
    return rows


def train_small(run: Run) -> list[Row]:
    """Trains the small HAT x2 of the card on ten photographs, and compares it with bicubic on two others."""
    torch.manual_seed(0)
    model = HatForImageSuperResolution(
        HatConfig(
            hidden_size=40,
            depths=[2, 2],
            num_attention_heads=[2, 2],
            window_size=8,
            compress_ratio=4,
            squeeze_factor=4,
            conv_scale=0.1,
            drop_path_rate=0.0,
            upscale=2,
        )
    )
    start_as_interpolation(model)
    return train_demo(run, model, HatImageProcessor(), "HAT")


@torch.no_grad()
def start_as_interpolation(model: HatForImageSuperResolution) -> None:
    """Sets the weights of a fresh x2 model so that it begins as bilinear interpolation and has to learn only the rest.

    RGB passes through the first convolution and the long skip connection into the upsampler, as x and as -x because of the
    rectifier there; the body is turned down, not off.
    """
    upsampler, slope = model.upsampler, model.upsampler.activation_fn.negative_slope
    taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # the two new pixels of an old one, along an axis
    kernels = torch.einsum("ai,bj->abij", taps, taps).reshape(4, 3, 3)
    for conv in (model.hat.conv_after_body, *(group.conv for group in model.hat.groups)):
        conv.weight.mul_(0.1)
    for conv, outputs in ((model.hat.conv_first, 6), (upsampler.conv_before, 6), (upsampler.convs[0], 12)):
        conv.weight[:outputs] = 0
        conv.bias[:outputs] = 0
    upsampler.conv_last.weight.mul_(0.1)
    upsampler.conv_last.bias.zero_()
    for color in range(3):
        model.hat.conv_first.weight[color, color, 1, 1] = 1
        model.hat.conv_first.weight[color + 3, color, 1, 1] = -1
        upsampler.conv_before.weight[color, color, 1, 1] = 1
        upsampler.conv_before.weight[color + 3, color + 3, 1, 1] = 1
        upsampler.convs[0].weight[4 * color : 4 * color + 4, color] = kernels / (1 + slope)
        upsampler.convs[0].weight[4 * color : 4 * color + 4, color + 3] = -kernels / (1 + slope)
        upsampler.conv_last.weight[color, :3] = 0
        upsampler.conv_last.weight[color, color, 1, 1] = 1


EXPERIMENTS = {
    "cost": Experiment("Parameters and multiply-adds of the published sizes", measure_cost, minutes=0.5),
    "tiling": Experiment(
        "What tiling changes, against the overlap of the tiles",
        measure_tiling,
        minutes=1,
        options={"tile_size": (96, "edge of a tile in input pixels")},
    ),
    "demo": Experiment(
        "The small x2 model that the card ships",
        train_small,
        minutes=7,
        options={"steps": (2000, "optimizer steps of 8 crops of 24x24")},
    ),
}
