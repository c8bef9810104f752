"""PixArt-δ's golden cases: networks, the edge detector, one step of LCM distillation, LCM sampling."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hf_ext.models.pixart_delta.scheduling_pixart_delta import lcm_scheduler, lcm_timesteps
from hf_ext.training.pixart_delta import NoiseSchedule, lcm_distillation_loss
from tests.goldens import call_arguments, run_model

SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")


def run(case: dict[str, Any]) -> Any:
    call = call_arguments(case)
    if "student_output" in call:
        return distil(case["arguments"], **call)
    if "original_inference_steps" in call:
        return sample(case["arguments"], **call)
    if "pixel_values" in call:
        case = case | {"arguments": {"model": "ControlNetHED_Apache2"} | case["arguments"]}
    return run_model(case)


def distil(
    arguments: dict[str, Any], latents: torch.Tensor, noise: torch.Tensor, index: torch.Tensor, **call: Any
) -> Any:
    """The distillation step, with the four networks replaced by what they answered."""
    networks = {
        "student": "student_output",
        "teacher": "teacher_cond_output",
        "teacher_uncond": "teacher_uncond_output",
        "target": "target_output",
    }
    answers = {name: partial(_answer, call.pop(key)) for name, key in networks.items()}
    schedule = NoiseSchedule(**{name: arguments[name] for name in SCHEDULE if name in arguments})
    output = lcm_distillation_loss(latents, noise, index, schedule=schedule, **answers, **call)
    return {**output, "loss_huber": output.loss_huber.reshape(1), "loss_l2": output.loss_l2.reshape(1)}


def _answer(answer: torch.Tensor, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return answer


def sample(
    arguments: dict[str, Any],
    sample: torch.Tensor,
    model_output: torch.Tensor,
    noise: torch.Tensor,
    num_inference_steps: int,
    original_inference_steps: int = 50,
) -> dict[str, torch.Tensor]:
    """The whole schedule; the reference adds noise after the last step too, unless there is only one."""
    known = (*SCHEDULE, "prediction_type")
    options = {name: arguments[name] for name in known if name in arguments}
    scheduler = lcm_scheduler(original_inference_steps=original_inference_steps, **options)
    timesteps = lcm_timesteps(num_inference_steps, original_inference_steps, scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(timesteps=timesteps)
    outputs = {"timesteps": scheduler.timesteps, "prev_sample": [], "denoised": []}
    for i, t in enumerate(scheduler.timesteps):
        denoised = scheduler.step(model_output[i], t, sample).denoised
        following = scheduler.timesteps[min(i + 1, num_inference_steps - 1)]
        sample = denoised if num_inference_steps == 1 else scheduler.add_noise(denoised, noise[i], following[None])
        outputs["prev_sample"].append(sample)
        outputs["denoised"].append(denoised)
    return outputs | {name: torch.stack(outputs[name]) for name in ("prev_sample", "denoised")}
