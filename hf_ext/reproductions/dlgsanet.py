"""DLGSANet: its size and cost, what test-time windows change, and the small x2 model that the card ships."""

from __future__ import annotations

import torch
from transformers.utils.logging import tqdm

from hf_ext.models.dlgsanet import DLGSANetConfig, DLGSANetForImageSuperResolution, DLGSANetImageProcessor

from . import Experiment, Row, Run
from .super_resolution import measure_tiling, train_demo

# The authors' counts for an output of 1280x720, and the parameters of their networks
PUBLISHED = {
    "dlgsanet-tiny-x2": (565_710, "128.1"),
    "dlgsanet-tiny-x3": (572_205, "57.0"),
    "dlgsanet-tiny-x4": (581_298, "32.0"),
    "dlgsanet-light-x2": (745_188, "170.1"),
    "dlgsanet-light-x3": (751_683, "75.7"),
    "dlgsanet-light-x4": (760_776, "42.5"),
    "dlgsanet-x2": (4_733_724, "1097.3"),
    "dlgsanet-x3": (4_745_889, "488.7"),
    "dlgsanet-x4": (4_762_920, "274.3"),
}


def measure_cost(run: Run) -> list[Row]:
    """Parameters of all presets, and multiply-additions as the authors count them."""
    rows = []
    for name, (parameters, operations) in tqdm(PUBLISHED.items(), desc="presets"):
        config = DLGSANetConfig.from_preset(name)
        with torch.device("meta"):
            model = DLGSANetForImageSuperResolution(config)
        size = (-(-1280 // config.upscale), 720 // config.upscale)
        rows += [
            Row(f"parameters, {name}", model.num_parameters(), str(parameters)),
            Row(f"multiply-adds for 1280x720, {name} (G)", counted(config, *size) / 1e9, operations),
        ]
    return rows


def counted(config: DLGSANetConfig, height: int, width: int) -> float:
    """Multiply-additions as the authors' `flops()` counts them: windows of the test-time converter whole, dynamic convolution
    included, and a few small terms as they wrote them (the depthwise convolution of the gated network once, not per pixel)."""
    pixels, dim, taps, edge = height * width, config.hidden_size, config.kernel_size**2, config.attention_window_size

    def gated(ratio: float) -> float:
        return 3 * pixels * dim**2 * ratio + 18 * dim * ratio

    features, groups = dim / 4, dim / config.filter_group_size
    predicted = pixels * (dim * features + dim * taps + features * groups * taps)
    local = pixels * (2 * dim + 2 * dim**2 + dim * taps) + predicted + gated(config.local_mlp_ratio)
    windows = -(-height // edge) * -(-width // edge)
    channels = 2 * windows * edge**2 * dim**2 // config.num_attention_heads
    globally = pixels * (2 * dim + 4 * dim**2 + 27 * dim) + channels + gated(config.global_mlp_ratio)
    body = sum(depth * (local + globally) + 9 * pixels * dim**2 for depth in config.depths)
    return body + pixels * dim * (27 + 3 * dim + 27)


@torch.no_grad()
def measure_windows(run: Run) -> list[Row]:
    """How far test-time windows are from attention over the whole image, where the image fits one and where it does not."""
    torch.manual_seed(0)
    config = DLGSANetConfig.from_preset("dlgsanet-light-x4")
    model = DLGSANetForImageSuperResolution(config).eval()
    whole = DLGSANetForImageSuperResolution(
        DLGSANetConfig.from_preset("dlgsanet-light-x4", attention_window_size=None)
    ).eval()
    whole.load_state_dict(model.state_dict())
    rows = []
    for size in ((48, 48), (48, 49), (96, 72)):
        images = torch.rand(1, 3, *size)
        difference = (model(images).reconstruction - whole(images).reconstruction).abs().max().item()
        rows.append(Row(f"largest difference to the whole image's attention, {size[0]}x{size[1]}", difference))
    return rows


def train_small(run: Run) -> list[Row]:
    """Trains the small DLGSANet x2 of the card on ten photographs, and compares it with bicubic on two others."""
    torch.manual_seed(0)
    model = DLGSANetForImageSuperResolution(
        DLGSANetConfig(
            hidden_size=32,
            depths=[1, 1],
            kernel_size=5,
            filter_group_size=8,
            num_attention_heads=4,
            upscale=2,
        )
    )
    start_as_interpolation(model)
    return train_demo(run, model, DLGSANetImageProcessor(), "DLGSANet")


@torch.no_grad()
def start_as_interpolation(model: DLGSANetForImageSuperResolution) -> None:
    """Sets the weights of a fresh x2 model so that it begins as bilinear interpolation and has to learn only the rest.

    RGB passes through the first convolution and the long skip connection into the upsampler; the body is turned down, not off.
    """
    taps = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])  # the two new pixels of an old one, along an axis
    kernels = torch.einsum("ai,bj->abij", taps, taps).reshape(4, 3, 3)
    body, upsampler = model.dlgsanet, model.upsampler
    for conv in (body.conv_after_body, *(group.conv for group in body.groups), upsampler.conv):
        conv.weight.mul_(0.1)
        conv.bias.zero_()
    body.conv_first.weight[:3] = 0
    for color in range(3):
        body.conv_first.weight[color, color, 1, 1] = 1
        upsampler.conv.weight[:, color] = 0
        upsampler.conv.weight[4 * color : 4 * color + 4, color] = kernels


EXPERIMENTS = {
    "cost": Experiment("Parameters and multiply-adds of the published sizes", measure_cost, minutes=0.5),
    "windows": Experiment("What windows at test time change", measure_windows, minutes=0.5),
    "tiling": Experiment(
        "What tiling changes, against the overlap of the tiles",
        measure_tiling,
        minutes=1,
        options={"tile_size": (96, "edge of a tile in input pixels")},
    ),
    "demo": Experiment(
        "The small x2 model that the card ships",
        train_small,
        minutes=3,
        options={"steps": (600, "optimizer steps of 8 crops of 24x24")},
    ),
}
