"""The neuron against the plain loop, the memory against its other forms, and the authors' model. float32, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hf_ext.models.lmuformer import LMUFormerConfig, LMUFormerForAudioClassification
from hf_ext.ops.legendre_memory import impulse_response, legendre_memory, state_space
from hf_ext.ops.legendre_memory import reference as memory_loop
from hf_ext.ops.spiking_neuron import lif, reference

from . import Contest
from .gla import forward, forward_backward

FRAMES = 128


def contests(reference_folder: Path | None = None) -> Iterator[Contest]:
    """Neurons of 128 frames; a memory of 256 numbers over 128 and 1024 frames, batch 8; a second of speech, whole and as a stream.

    The authors' model is not among the peers: it needs packages that this one does without (a SpikingJelly of 2022 and timm).
    """
    torch.manual_seed(0)
    for batch, channels in ((1, 256), (8, 512), (32, 1024)):
        x = [torch.randn(batch, FRAMES, channels).requires_grad_()]
        for name, run in (("forward", forward), ("forward + backward", forward_backward)):
            yield Contest(
                f"LIF {batch} x {FRAMES} x {channels}, {name}", run(lif, x), run(reference, x), "token loop", 1
            )
    A, B = state_space(256, FRAMES)
    for frames in (FRAMES, 1024):
        u, response = torch.randn(8, frames), impulse_response(A, B, frames)
        ours = memory(lambda u, response: legendre_memory(u, A, B, response=response), u, response)
        yield Contest(f"memory 8 x {frames} x 256, forward", ours, memory(spectra, u, response), "FFT", 1)
        yield Contest(f"memory 8 x {frames} x 256, forward", ours, memory(memory_loop, u, A, B), "token loop", 1)
    for preset in ("lmuformer", "spiking-lmuformer"):
        model = LMUFormerForAudioClassification(LMUFormerConfig.from_preset(preset)).eval()
        speech = torch.randn(1, FRAMES, 128)
        yield Contest(
            f"{preset}, {FRAMES} frames at once", whole(model, speech), stream(model, speech), "frame by frame", 1
        )


def spectra(u: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """As the authors have it: spectra of twice the length, the memory before the time."""
    size = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u.unsqueeze(1), size) * torch.fft.rfft(response.T, size)
    return torch.fft.irfft(spectrum, size)[..., : u.shape[1]].mT


def memory(form: Callable, *inputs: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        form(*inputs)

    return run


def whole(model: LMUFormerForAudioClassification, speech: torch.Tensor) -> Callable[[], None]:
    return memory(model, speech)


def stream(model: LMUFormerForAudioClassification, speech: torch.Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        cache = model(speech[:, :1], use_cache=True).past_key_values
        for frame in range(1, FRAMES):
            model(speech[:, frame : frame + 1], past_key_values=cache, is_last=frame == FRAMES - 1)

    return run
