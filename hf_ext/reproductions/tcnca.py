"""Associative recall (arXiv 2312.05605, section 4), with the convolutions and with the moving average of MEGA that they replace.

A sequence is key-value pairs, each key with one value throughout, and ends with a key that came before: its value is asked for. In training
every key that comes again is asked for. Attention is cut into chunks, so what came in an earlier one has to pass through the convolutions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_ext.files import replaced_files
from hf_ext.models.tcnca import TCNCAConfig, TCNCAForCausalLM

from . import Experiment, Row, Run

SYMBOLS = 10  # keys, and as many values
CHUNK = 64
BATCH = 64
STATES = 4  # of the moving average: as many parameters as the convolutions


def pairs(count: int, length: int, seed: int, last_only: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (count, length): keys below `SYMBOLS`, values from there on; labels stand at the values themselves, as causal
    language models shift them. With `last_only` the last value alone, whose key is drawn among those that came before, is asked for."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(SYMBOLS, size=(count, length // 2))
    rows = np.arange(count)
    keys[:, -1] = keys[rows, rng.integers(length // 2 - 1, size=count)]
    values = rng.integers(SYMBOLS, 2 * SYMBOLS, size=(count, SYMBOLS))
    values = np.take_along_axis(values, keys, 1)
    ids = np.stack((keys, values), 2).reshape(count, -1)
    known = (np.tril(keys[:, :, None] == keys[:, None], -1)).any(2)
    if last_only:
        known[:, :-1] = False
    labels = np.full_like(ids, -100)
    labels[:, 1::2][known] = values[known]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def convolve_with(x: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    """Causal convolution of x (batch, tokens, channels) with a kernel as long, of which the transform is given."""
    tokens = x.shape[1]
    return torch.fft.irfft(torch.fft.rfft(x.mT, n=2 * tokens) * spectrum, n=2 * tokens)[..., :tokens].mT


class MovingAverage(nn.Module):
    """MEGA's damped exponential moving average of one direction (arXiv 2209.10655, section 3.1), with MEGA's initial values."""

    def __init__(self, channels: int, states: int):
        super().__init__()
        self.alpha, self.delta = (nn.Parameter(0.2 * torch.randn(channels, states)) for _ in range(2))
        self.beta = nn.Parameter(0.02 * torch.randn(channels, states) + (-1.0) ** torch.arange(states))
        self.gamma, self.omega = nn.Parameter(torch.randn(channels, states)), nn.Parameter(torch.randn(channels))

    def kernel(self, tokens: int) -> torch.Tensor:
        """(channels, tokens)"""
        step = self.alpha.sigmoid()
        decay = (1 - step * self.delta.sigmoid()).log().unsqueeze(-1) * torch.arange(tokens)
        factor = step * self.beta * self.gamma * self.gamma.shape[1] ** -0.5
        return (factor.unsqueeze(-1) * decay.exp()).sum(1)

    def forward(self, x: torch.Tensor, *_) -> tuple[torch.Tensor, None]:
        average = convolve_with(x, torch.fft.rfft(self.kernel(x.shape[1]), n=2 * x.shape[1]))
        return F.silu(average + x * self.omega), None


class MegaForCausalLM(TCNCAForCausalLM):
    """The same model with moving averages."""

    def __init__(self, config: TCNCAConfig):
        super().__init__(config)
        for layer in self.model.layers:
            layer.attention.tcn = MovingAverage(config.hidden_size, STATES)


def config() -> TCNCAConfig:
    """Two layers; a receptive field of 171 tokens"""
    return TCNCAConfig(
        vocab_size=2 * SYMBOLS,
        hidden_size=64,
        z_dim=32,
        v_dim=128,
        intermediate_size=128,
        num_hidden_layers=2,
        chunk_size=CHUNK,
        kernel_size=3,
        dilation_factor=4,
        depth=4,
        dropout=0.0,
    )


@torch.no_grad()
def accuracy(model: TCNCAForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of last values that have the largest logit."""
    guesses = torch.cat([model(part, use_cache=False).logits[:, -2].argmax(-1) for part in ids.split(BATCH)])
    return (guesses == labels[:, -1]).float().mean().item()


def recall(run: Run) -> list[Row]:
    """The same model with convolutions and with moving averages, at two lengths; the first at 64 tokens is the card's checkpoint."""
    from .training import TensorDataset, train

    steps, rows = int(run.options["steps"]), []
    for length in (64, 128):
        ids, labels = pairs(BATCH * steps, length, seed=1)
        for name, model_class in (("TCNCA", TCNCAForCausalLM), ("MEGA", MegaForCausalLM)):
            torch.manual_seed(0)
            model = train(
                Run(run.slug, run.folder / f"{name}-{length}", run.options),
                model_class(config()),
                TensorDataset(input_ids=ids, labels=labels),
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=float(run.options["learning_rate"]),
                lr_scheduler_type="cosine",
                warmup_steps=steps // 10,
                weight_decay=0.0,
                max_grad_norm=1.0,
            )
            first = name == "TCNCA" and length == 64
            rows.append(
                Row(
                    f"recall among {SYMBOLS} keys, {length} tokens, {name}",
                    accuracy(model, *pairs(1024, length, seed=2, last_only=True)),
                    dataset="associative recall, 10 keys, 64 tokens" if first else "",
                    metric_type="accuracy" if first else "",
                    note=f"{model.num_parameters():,} parameters, {steps} steps",
                )
            )
            if first:
                with replaced_files(run.card) as folder:
                    model.save_pretrained(folder)
    return rows


EXPERIMENTS = {
    "recall": Experiment(
        "Associative recall with convolutions and with moving averages",
        recall,
        minutes=4,
        options={
            "steps": (300, "optimizer steps of 64 sequences, per model"),
            "learning_rate": (3e-3, "peak learning rate"),
        },
    ),
}
