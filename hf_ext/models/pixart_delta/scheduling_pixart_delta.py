"""The sampler that PixArt-δ is distilled for: Diffusers' `LCMScheduler`, with the authors' betas and the authors' timesteps.

Reference: PixArt-alpha/PixArt-alpha, diffusion/lcm_scheduler.py. A step of upstream's scheduler equals the reference's. Two
things differ: its default betas are Stable Diffusion's, and it spaces timesteps evenly where the reference skips by a whole
number. The reference also adds noise to the sample after the last step, which nobody uses: the image is decoded from
`denoised`, which upstream returns there.
"""

from __future__ import annotations

from typing import Any

from diffusers import LCMScheduler

LINEAR_BETAS: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def lcm_scheduler(**overrides: Any) -> LCMScheduler:
    """`LCMScheduler` with the linear betas of PixArt, 1e-4 .. 0.02."""
    return LCMScheduler(**{**LINEAR_BETAS, "original_inference_steps": 50, **overrides})


def lcm_timesteps(
    num_inference_steps: int, original_inference_steps: int = 50, num_train_timesteps: int = 1000
) -> list[int]:
    """The reference's timesteps, to be passed as `timesteps=`: 4 steps are [999, 759, 519, 279] (upstream's: 999, 759, 499, 259).

    Raises:
        ValueError: `num_inference_steps` is not between 1 and `original_inference_steps`, or those exceed the training steps.
    """
    if not 1 <= original_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"`original_inference_steps` is {original_inference_steps}; it must be 1 to {num_train_timesteps}"
        )
    if not 1 <= num_inference_steps <= original_inference_steps:
        raise ValueError(f"`num_inference_steps` is {num_inference_steps}; it must be 1 to {original_inference_steps}")
    stride = num_train_timesteps // original_inference_steps
    grid = [stride * step - 1 for step in range(original_inference_steps, 0, -1)]
    return grid[:: original_inference_steps // num_inference_steps][:num_inference_steps]
