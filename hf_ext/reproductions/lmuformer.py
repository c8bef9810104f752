"""LMUFormer: permuted digits, read pixel by pixel, by plain and spiking Legendre memory units and an LSTM; exactness of memory and stream.

The paper's psMNIST network in small: scikit-learn's digits of 8x8 instead of MNIST, so 64 steps instead of 784.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hf_ext.data.digits import handwritten_digits
from hf_ext.layers.legendre_memory import LegendreMemoryCell
from hf_ext.layers.streaming import SpikingNeurons
from hf_ext.models.lmuformer import LMUFormerConfig, LMUFormerForAudioClassification
from hf_ext.ops.legendre_memory import impulse_response, legendre_memory, reference, state_space

from . import Experiment, Row, Run

STEPS, BATCH = 64, 64
SIZE = 64  # hidden units, and numbers of memory
LSTM_SIZE = 33  # hidden units of an LSTM with as many parameters


class DigitReader(nn.Module):
    """A convolution of one pixel to three channels, a norm, a recurrent layer, and a linear classifier averaged over time."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 1)
        self.norm = nn.BatchNorm1d(3)
        self.layer = layer
        self.classifier = nn.Linear(width, 10)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """pixels (batch, 64) -> the class after each (batch, 64, 10), and the loss of the last"""
        hidden, _ = self.layer(self.norm(self.conv(pixels.unsqueeze(1))).mT.contiguous())
        scores = self.classifier(hidden).cumsum(1) / torch.arange(1, pixels.shape[1] + 1).unsqueeze(-1)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(scores[:, -1], labels)}
        return loss | {"logits": scores}


READERS: dict[str, Callable[[], DigitReader]] = {
    "LMU": lambda: DigitReader(LegendreMemoryCell(3, SIZE, SIZE, theta=STEPS), SIZE),
    "spiking LMU": lambda: DigitReader(LegendreMemoryCell(3, SIZE, SIZE, STEPS, SpikingNeurons), SIZE),
    "LSTM": lambda: DigitReader(nn.LSTM(3, LSTM_SIZE, batch_first=True), LSTM_SIZE),
}


def permuted_digits() -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """(pixels, labels) to train on, and held out; all images in one random order of pixels."""
    order = np.random.default_rng(0).permutation(STEPS)
    return tuple(
        (
            torch.tensor(np.stack([np.asarray(image).ravel()[order] for image in images]) / 255).float(),
            torch.tensor(labels),
        )
        for images, labels in handwritten_digits()
    )


def digits(run: Run) -> list[Row]:
    from .training import TensorDataset, train

    (pixels, labels), (held_out, answers) = permuted_digits()
    rows = []
    for name, build in READERS.items():
        torch.manual_seed(0)
        model = train(
            Run(run.slug, run.folder / name.replace(" ", "_"), run.options),
            build(),
            TensorDataset(pixels=pixels, labels=labels),
            num_train_epochs=float(run.options["epochs"]),
            per_device_train_batch_size=BATCH,
            learning_rate=float(run.options["learning_rate"]),
            lr_scheduler_type="cosine",
            weight_decay=0.0,
        )
        with torch.no_grad():
            right = (model(held_out)["logits"].argmax(-1) == answers[:, None]).float().mean(0)
        enough = 1 + int((right >= right[-1] - 0.01).nonzero()[0])
        size = sum(parameter.numel() for parameter in model.parameters())
        note = f"{size:,} parameters; within a point of it after {enough} of {STEPS} pixels"
        rows.append(Row(f"accuracy, permuted digits, {name}", right[-1].item(), note=note))
    return rows


@torch.no_grad()
def exactness(run: Run) -> list[Row]:
    """Largest distances in float32: of the memory from its recurrence in float64, and of a stream's logits from the whole's."""
    rows = []
    A, B = state_space(256, 128)
    for length in (1, 50, 128, 784):
        u = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
        expected, _ = reference(u.double(), A.double(), B.double())
        at_once, _ = legendre_memory(u, A, B)
        step_by_step, _ = reference(u, A, B)
        response = impulse_response(A, B, length)
        spectra = torch.fft.rfft(u, 2 * length).unsqueeze(-1) * torch.fft.rfft(response, 2 * length, dim=0)
        spectra = torch.fft.irfft(spectra, 2 * length, dim=1)[:, :length]
        error, loop, fft = ((x - expected).abs().max().item() for x in (at_once, step_by_step, spectra))
        note = f"its FFT form {fft:.1e}, its recurrence {loop:.1e}"
        rows.append(Row(f"memory of 256 numbers, {length} steps, largest error", error, note=note))
    for preset in ("lmuformer", "spiking-lmuformer"):
        torch.manual_seed(0)
        model = LMUFormerForAudioClassification(LMUFormerConfig.from_preset(preset)).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):  # new neurons of a new network would be silent
                module.weight.fill_(3.0)
                module.bias.fill_(0.5)
        speech = torch.randn(2, 128, 128)
        whole, cache, logits = model(speech).frame_logits, None, []
        for frame in range(128):
            output = model(speech[:, frame : frame + 1], past_key_values=cache, use_cache=True, is_last=frame == 127)
            cache = output.past_key_values
            logits.append(output.frame_logits)
        error = ((torch.cat(logits, 1) - whole).abs().max() / whole.abs().max()).item()
        rows.append(Row(f"{preset}, frame by frame, largest relative difference", error, note="random weights"))
    return rows


EXPERIMENTS = {
    "digits": Experiment(
        "Permuted sequential digits of 8x8",
        digits,
        minutes=2,
        options={"epochs": (40, "passes over 1438 images"), "learning_rate": (5e-3, "peak learning rate")},
    ),
    "exactness": Experiment("Forms of the memory, and stream against whole", exactness, minutes=0.2),
}
