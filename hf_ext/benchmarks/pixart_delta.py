"""PixArt-δ: what control costs, what four steps save, and our control against Diffusers' research project.

`--reference` is a folder that holds controlnet_pixart_alpha.py (examples/research_projects/pixart in a checkout of Diffusers), or that
checkout itself. The authors' own code needs xformers, which needs a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, PixArtTransformer2DModel

from hf_ext.benchmarks import Contest
from hf_ext.catalog import METHODS
from hf_ext.models.pixart_delta import PixArtControlNetTransformer2DModel


def contests(reference: Path | None = None) -> Iterator[Contest]:
    yield cost_of_control()
    if (METHODS["pixart_delta"].card / "model_index.json").is_file():
        yield four_steps()
    if reference is not None:
        yield research_project(load_reference(reference))


def cost_of_control() -> Contest:
    """The published depth, 28 blocks and 13 copies, a quarter as wide, 32x32 latents."""
    base = transformer(num_attention_heads=4, num_layers=28)
    controlled = PixArtControlNetTransformer2DModel.from_transformer(base, num_layers=13)
    inputs = latents_and_caption()
    return Contest(
        name="forward with control, 28 blocks and 13 copies of width 288, 256 tokens",
        ours=partial(forward, controlled, controlnet_cond=torch.randn(1, 4, 32, 32), **inputs),
        peer=partial(forward, base, **inputs),
        peer_name="without control (13 / 28 of the blocks' work: 0.68)",
        threads=1,
    )


def four_steps() -> Contest:
    """The card's pipeline draws eight digits, and so does the pipeline that it was distilled from."""
    card = METHODS["pixart_delta"].card
    ours = DiffusionPipeline.from_pretrained(card)
    peer = DiffusionPipeline.from_pretrained(
        card,
        transformer=PixArtTransformer2DModel.from_pretrained(card, subfolder="teacher"),
        scheduler=DPMSolverMultistepScheduler.from_config(ours.scheduler.config),
    )
    for pipeline in (ours, peer):
        pipeline.set_progress_bar_config(disable=True)
    return Contest(
        name="8 digits with the card's pipeline, 4 LCM steps",
        ours=partial(draw, ours),
        peer=partial(draw, peer, num_inference_steps=20, guidance_scale=2.0),
        peer_name="its teacher, 20 DPM-Solver++ steps with guidance",
        threads=1,
    )


def research_project(module: ModuleType) -> Contest:
    """Six blocks and two copies at the width that the research project fixes, 1152; equal weights."""
    base = transformer(num_attention_heads=16, num_layers=6)
    ours = PixArtControlNetTransformer2DModel.from_transformer(base, num_layers=2)
    adapter = module.PixArtControlNetAdapterModel(num_layers=2)
    adapter.load_state_dict(ours.controlnet.state_dict())
    peer = module.PixArtControlNetTransformerModel(base, adapter, blocks_num=2)
    inputs = latents_and_caption() | {"controlnet_cond": torch.randn(1, 4, 32, 32)}
    return Contest(
        name="forward with control, 6 blocks and 2 copies of width 1152, 256 tokens",
        ours=partial(forward, ours, **inputs),
        peer=partial(forward, peer, **inputs),
        peer_name="diffusers/examples/research_projects/pixart",
        threads=1,
    )


def transformer(num_attention_heads: int, num_layers: int) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=num_attention_heads,
        num_layers=num_layers,
        cross_attention_dim=72 * num_attention_heads,
        caption_channels=256,
        sample_size=32,
        interpolation_scale=0.5,
    ).eval()


def latents_and_caption() -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(1, 4, 32, 32),
        "encoder_hidden_states": torch.randn(1, 120, 256),
        "timestep": torch.tensor([999]),
    }


@torch.no_grad()
def forward(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def draw(pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
    from hf_ext.reproductions.pixart_delta import sample

    return sample(pipeline, range(8), **kwargs)


def load_reference(folder: str | Path) -> ModuleType:
    paths = [Path(folder) / place / "controlnet_pixart_alpha.py" for place in ("", "examples/research_projects/pixart")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"'{folder}' is no checkout of Diffusers: it has no {paths[1].relative_to(folder)}")
    spec = spec_from_file_location("pixart_research_project", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
