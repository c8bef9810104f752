"""PixArt-δ's training: latent consistency distillation (full and LoRA), and the denoising loss of its ControlNet.

Paper: PIXART-δ (arXiv 2401.05252), section 3, after Latent Consistency Models (arXiv 2310.04378).
Reference: PixArt-alpha/PixArt-alpha, train_scripts/train_pixart_lcm.py, train_pixart_lcm_lora.py, diffusion/model/gaussian_diffusion.py.

Networks only have to predict noise from `(sample, timestep)`: the losses fit any epsilon model of Diffusers. Where the paper
and the authors' code differ, the code is followed: the guidance scale is fixed, and guidance is `e_c + w (e_c - e_u)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ModelOutput

# What the paper trains with, for `TrainingArguments(**LCM_TRAINING, ...)`
LCM_TRAINING: dict[str, Any] = {
    "learning_rate": 2e-5,
    "weight_decay": 0.0,
    "adam_epsilon": 1e-10,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 100,
    "max_grad_norm": 0.01,
}
LCM_LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "linear",
    "linear_1",
    "linear_2",
]

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class NoiseSchedule:
    """The diffusion q(z_t | z_0) = N(sqrt(abar_t) z_0, (1 - abar_t) I), in double precision as in the reference.

    Args:
        num_train_timesteps: T.
        beta_schedule: "linear" (PixArt), "scaled_linear" or "squaredcos_cap_v2", under Diffusers' names.
        beta_start, beta_end: ends of the linear schedules.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ):
        def cosine(t: torch.Tensor) -> torch.Tensor:
            return torch.cos((t / num_train_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = torch.arange(num_train_timesteps, dtype=torch.float64)
        ramp = steps / max(num_train_timesteps - 1, 1)
        schedules = {
            "linear": lambda: beta_start + (beta_end - beta_start) * ramp,
            "scaled_linear": lambda: (beta_start**0.5 + (beta_end**0.5 - beta_start**0.5) * ramp) ** 2,
            "squaredcos_cap_v2": lambda: (1 - cosine(steps + 1) / cosine(steps)).clamp(max=0.999),
        }
        if beta_schedule not in schedules:
            raise ValueError(f"`beta_schedule` is {beta_schedule!r}; it must be one of {', '.join(schedules)}")
        self.num_train_timesteps = num_train_timesteps
        self.betas = schedules[beta_schedule]()
        self.alphas_cumprod = (1 - self.betas).cumprod(0)

    def at(self, table: torch.Tensor, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """table[timesteps], shaped (batch, 1, ...) to go with `like`, in its dtype and on its device."""
        return table.to(like)[timesteps.to(like.device)].view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e; with predictions for z_0 and e it is a DDIM step to t."""
        signal = self.at(self.alphas_cumprod.sqrt(), timesteps, latents)
        return signal * latents + self.at((1 - self.alphas_cumprod).sqrt(), timesteps, latents) * noise

    def predict_origin(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_0 = (z_t - sqrt(1 - abar_t) e) / sqrt(abar_t)"""
        sigma = self.at((1 - self.alphas_cumprod).sqrt(), timesteps, sample)
        return (sample - sigma * noise) / self.at(self.alphas_cumprod.sqrt(), timesteps, sample)


def boundary_scalings(
    timesteps: torch.Tensor, like: torch.Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out of f(z, t) = c_skip(t) z + c_out(t) z_0(z, t), which make f(z, 0) = z (LCM, eq. 9)."""
    scaled = timestep_scaling * timesteps.double()
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / (scaled**2 + sigma_data**2).sqrt()
    shape = (-1, *[1] * (like.ndim - 1))
    return c_skip.to(like).view(shape), c_out.to(like).view(shape)


@dataclass
class LCMLossOutput(ModelOutput):
    """
    Args:
        loss: what is minimised, `loss_huber` or `loss_l2`.
        loss_huber: mean of sqrt((pred - target)^2 + c^2) - c.
        loss_l2: mean squared error.
        start_timesteps, timesteps: (batch,), t_i and the one DDIM step below, s.
        noisy_latents, model_pred, x_prev, target: of the latents' shape: z_t, f_student(z_t, t), the teacher's z_s, f_target(z_s, s).
    """

    loss: torch.FloatTensor | None = None
    loss_huber: torch.FloatTensor | None = None
    loss_l2: torch.FloatTensor | None = None
    start_timesteps: torch.LongTensor | None = None
    timesteps: torch.LongTensor | None = None
    noisy_latents: torch.FloatTensor | None = None
    model_pred: torch.FloatTensor | None = None
    x_prev: torch.FloatTensor | None = None
    target: torch.FloatTensor | None = None


def lcm_distillation_loss(
    latents: torch.Tensor,
    noise: torch.Tensor,
    index: torch.Tensor,
    student: Denoiser,
    teacher: Denoiser,
    teacher_uncond: Denoiser,
    target: Denoiser,
    schedule: NoiseSchedule | None = None,
    num_ddim_timesteps: int = 50,
    guidance_scale: float = 4.5,
    huber_c: float = 0.001,
    loss_type: str = "huber",
) -> LCMLossOutput:
    """One step of latent consistency distillation (LCM, algorithm 1, with the authors' constants).

    The student's jump from z_t to the origin is to equal the target network's jump from z_s, where the guided teacher goes from z_t to
    z_s in one DDIM step. Gradients flow through `student` only.

    Args:
        latents, noise: (batch, channels, ...), clean latents and standard normal noise.
        index: (batch,), positions in the grid of `num_ddim_timesteps` timesteps, t_i = (i + 1) * T // K - 1.
        student, teacher, teacher_uncond, target: map (noisy latents, timesteps) to noise; of more channels than the latents' the first are
            taken (the rest predicts variance).
        guidance_scale: w in e_c + w (e_c - e_u); pipelines call that `guidance_scale = 1 + w`.
        huber_c: c of the pseudo-Huber loss.

    Raises:
        ValueError: an index outside the grid, an unknown `loss_type`, or latents and noise of different shapes.
    """
    schedule = schedule or NoiseSchedule()
    if loss_type not in ("huber", "l2"):
        raise ValueError(f"`loss_type` is {loss_type!r}; it must be 'huber' or 'l2'")
    if latents.shape != noise.shape:
        raise ValueError(f"`latents` {tuple(latents.shape)} and `noise` {tuple(noise.shape)} must have the same shape")
    if not 1 <= num_ddim_timesteps <= schedule.num_train_timesteps:
        raise ValueError(
            f"`num_ddim_timesteps` is {num_ddim_timesteps}; it must be 1 to {schedule.num_train_timesteps}"
        )
    if index.min() < 0 or index.max() >= num_ddim_timesteps:
        raise ValueError(f"`index` must be 0 to {num_ddim_timesteps - 1}, the grid has {num_ddim_timesteps} timesteps")
    channels = latents.shape[1]
    stride = schedule.num_train_timesteps // num_ddim_timesteps
    start = (index + 1) * stride - 1
    end = (start - stride).clamp(min=0)

    def consistency(network: Denoiser, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        origin = schedule.predict_origin(sample, network(sample, timesteps)[:, :channels], timesteps)
        c_skip, c_out = boundary_scalings(timesteps, sample)
        return c_skip * sample + c_out * origin

    noisy = schedule.add_noise(latents, noise, start)
    pred = consistency(student, noisy, start)
    with torch.no_grad():
        cond, uncond = (network(noisy, start)[:, :channels] for network in (teacher, teacher_uncond))
        guided = cond + guidance_scale * (cond - uncond)
        # z_0 is linear in the noise, so guiding the noise guides both of what the DDIM step takes.
        x_prev = schedule.add_noise(schedule.predict_origin(noisy, guided, start), guided, end)
        goal = consistency(target, x_prev, end)

    difference = pred.float() - goal.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred - goal
    losses = {"huber": ((difference**2 + huber_c**2).sqrt() - huber_c).mean(), "l2": (difference**2).mean()}
    return LCMLossOutput(
        loss=losses[loss_type],
        loss_huber=losses["huber"],
        loss_l2=losses["l2"],
        start_timesteps=start,
        timesteps=end,
        noisy_latents=noisy,
        model_pred=pred,
        x_prev=x_prev,
        target=goal,
    )


class LCMDistillation(nn.Module):
    """Student, teacher and target of latent consistency distillation as one module, whose forward is the loss.

    `Trainer(LCMDistillation(...), callbacks=[UpdateTarget()])` trains it; with Accelerate alone, call `update_target()` after
    each optimizer step. The result is `student`. The teacher is not part of its checkpoints.

    - full: `LCMDistillation(student, teacher, ...)`; the target is a moving average of the student.
    - LoRA: `LCMDistillation(get_peft_model(transformer, lcm_lora_config()), ...)`; the teacher is the student without its adapter, and the
      target is the student itself.

    Args:
        student: a Diffusers transformer (`PixArtTransformer2DModel`), or one in PEFT.
        teacher: the transformer that is distilled; None for LoRA.
        null_caption: (tokens, caption_channels), the caption of unconditional guidance: the authors' learned one, or the text encoder's "".
        null_caption_mask: (tokens,); None for the mask of each sample's own caption, as in the reference.
        ema_decay: of the target, per optimizer step.
        schedule, num_ddim_timesteps, guidance_scale, huber_c, loss_type: of `lcm_distillation_loss`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        null_caption: torch.Tensor,
        null_caption_mask: torch.Tensor | None = None,
        schedule: NoiseSchedule | None = None,
        ema_decay: float = 0.95,
        num_ddim_timesteps: int = 50,
        guidance_scale: float = 4.5,
        huber_c: float = 0.001,
        loss_type: str = "huber",
    ):
        super().__init__()
        if teacher is None and not hasattr(student, "disable_adapter"):
            raise ValueError(
                "Without a `teacher` the student must carry a PEFT adapter: its base model then is the teacher"
            )
        self.student = student
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.target = None if teacher is None else deepcopy(student).eval().requires_grad_(False)
        self.register_buffer("null_caption", null_caption, persistent=False)
        self.register_buffer("null_caption_mask", null_caption_mask, persistent=False)
        self.schedule = schedule or NoiseSchedule()
        self.ema_decay = ema_decay
        self.num_ddim_timesteps = num_ddim_timesteps
        self.loss_options = {"guidance_scale": guidance_scale, "huber_c": huber_c, "loss_type": loss_type}
        self.register_state_dict_post_hook(_leave_teacher_out)
        self.register_load_state_dict_post_hook(_expect_no_teacher)

    def forward(
        self,
        latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        resolution: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
    ) -> LCMLossOutput:
        """
        Args:
            latents: (batch, channels, height, width), clean and scaled.
            encoder_hidden_states, encoder_attention_mask: (batch, tokens, caption_channels) and (batch, tokens).
            resolution, aspect_ratio: (batch, 2) and (batch, 1), for multi-scale models.
            noise, index: drawn if None.
        """
        noise = torch.randn_like(latents) if noise is None else noise
        index = (
            torch.randint(self.num_ddim_timesteps, latents.shape[:1], device=latents.device) if index is None else index
        )
        size = None if resolution is None else {"resolution": resolution, "aspect_ratio": aspect_ratio}

        def denoiser(network: nn.Module, caption: torch.Tensor, mask: torch.Tensor | None) -> Denoiser:
            return lambda sample, timestep: network(
                sample,
                encoder_hidden_states=caption,
                encoder_attention_mask=mask,
                timestep=timestep,
                added_cond_kwargs=size,
                return_dict=False,
            )[0]

        null_caption = self.null_caption.to(encoder_hidden_states).expand(len(latents), -1, -1)
        null_mask = encoder_attention_mask
        if self.null_caption_mask is not None:
            null_mask = self.null_caption_mask.expand(len(latents), -1)
        captioned = (encoder_hidden_states, encoder_attention_mask)
        return lcm_distillation_loss(
            latents,
            noise,
            index,
            student=denoiser(self.student, *captioned),
            teacher=denoiser(self._teacher, *captioned),
            teacher_uncond=denoiser(self._teacher, null_caption, null_mask),
            target=denoiser(self.student if self.target is None else self.target, *captioned),
            schedule=self.schedule,
            num_ddim_timesteps=self.num_ddim_timesteps,
            **self.loss_options,
        )

    def _teacher(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.teacher is not None else self.student.disable_adapter():
            return (self.teacher or self.student)(*args, **kwargs)

    @torch.no_grad()
    def update_target(self) -> None:
        """target <- ema_decay * target + (1 - ema_decay) * student; nothing to do for LoRA."""
        if self.target is not None:
            for target, student in zip(self.target.parameters(), self.student.parameters()):
                target.lerp_(student.to(target), 1 - self.ema_decay)

    def train(self, mode: bool = True) -> LCMDistillation:
        super().train(mode)
        for frozen in filter(None, (self.teacher, self.target)):
            frozen.eval()
        return self


def _leave_teacher_out(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def _expect_no_teacher(module: nn.Module, incompatible_keys: Any) -> None:
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if ".teacher." not in f".{name}"]


class UpdateTarget(TrainerCallback):
    """Lets the target of an `LCMDistillation` follow its student after each optimizer step of `Trainer`."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        getattr(model, "module", model).update_target()


def lcm_lora_config(rank: int = 32, **overrides: Any) -> Any:
    """The `LoraConfig` of LCM-LoRA: every linear map of the transformer, not its scale-shift tables."""
    from peft import LoraConfig

    return LoraConfig(**{"r": rank, "target_modules": LCM_LORA_TARGETS, **overrides})


@dataclass
class IDDPMLossOutput(ModelOutput):
    """
    Args:
        loss: the mean over the batch of `mse + vb`.
        mse: (batch,), of the predicted noise.
        vb: (batch,), variational bound of the predicted variance in bits per dimension; None for a model that predicts no variance.
    """

    loss: torch.FloatTensor | None = None
    mse: torch.FloatTensor | None = None
    vb: torch.FloatTensor | None = None


def iddpm_loss(
    model_output: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    schedule: NoiseSchedule | None = None,
) -> IDDPMLossOutput:
    """The denoising loss that PixArt and its ControlNet train with (Improved DDPM, arXiv 2102.09672, eq. 15 to 16).

    Args:
        model_output: (batch, channels or 2 * channels, ...): noise, then variance as a fraction in [-1, 1] between the two bounds on its
            logarithm; it learns from the bound, the noise does not.
        latents, noise, timesteps: z_0, e and t of `z_t = schedule.add_noise(latents, noise, timesteps)`.

    Raises:
        ValueError: the output has neither the latents' channels nor twice as many.
    """
    schedule = schedule or NoiseSchedule()
    channels = latents.shape[1]
    if model_output.shape[1] not in (channels, 2 * channels):
        raise ValueError(
            f"`model_output` has {model_output.shape[1]} channels; it must have {channels} or {2 * channels}"
        )
    predicted_noise, fraction = model_output[:, :channels], model_output[:, channels:]
    mse = ((predicted_noise - noise) ** 2).flatten(1).mean(1)
    if not fraction.numel():
        return IDDPMLossOutput(loss=mse.mean(), mse=mse)
    noisy = schedule.add_noise(latents, noise, timesteps)
    vb = _variational_bound(predicted_noise.detach(), fraction, latents, noisy, timesteps, schedule)
    return IDDPMLossOutput(loss=(mse + vb).mean(), mse=mse, vb=vb)


class DenoisingTraining(nn.Module):
    """A transformer under `iddpm_loss`, as PixArt and its ControlNet are trained; its forward is the loss, so `Trainer` runs it as it is.

    For a ControlNet freeze the rest first: `model.requires_grad_(False); model.controlnet.requires_grad_(True)`.

    Args:
        transformer: `PixArtControlNetTransformer2DModel` or `PixArtTransformer2DModel`.
        null_caption, null_caption_mask: (tokens, caption_channels) and (tokens,), what a dropped caption is replaced by; without a mask it
            has that of the caption, as in the reference.
        caption_dropout: share of captions that are dropped while training; 0.1 in PixArt, 0.5 for its ControlNet.
        schedule: of the noise.
    """

    def __init__(
        self,
        transformer: nn.Module,
        null_caption: torch.Tensor,
        null_caption_mask: torch.Tensor | None = None,
        caption_dropout: float = 0.1,
        schedule: NoiseSchedule | None = None,
    ):
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"`caption_dropout` is {caption_dropout}; it is a share, 0 to 1")
        self.transformer = transformer
        self.register_buffer("null_caption", null_caption, persistent=False)
        self.register_buffer("null_caption_mask", null_caption_mask, persistent=False)
        self.caption_dropout = caption_dropout
        self.schedule = schedule or NoiseSchedule()

    def forward(
        self,
        latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        resolution: torch.Tensor | None = None,
        aspect_ratio: torch.Tensor | None = None,
        controlnet_cond: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
    ) -> IDDPMLossOutput:
        """Arguments as in `LCMDistillation`; `controlnet_cond` has the latents' shape, `timesteps` (batch,)."""
        batch_size, device = len(latents), latents.device
        noise = torch.randn_like(latents) if noise is None else noise
        if timesteps is None:
            timesteps = torch.randint(self.schedule.num_train_timesteps, (batch_size,), device=device)
        dropped = torch.rand(batch_size, device=device) < self.caption_dropout * self.training
        null_caption = self.null_caption.to(encoder_hidden_states)
        encoder_hidden_states = torch.where(dropped[:, None, None], null_caption, encoder_hidden_states)
        if encoder_attention_mask is not None and self.null_caption_mask is not None:
            encoder_attention_mask = torch.where(dropped[:, None], self.null_caption_mask, encoder_attention_mask)
        control = {} if controlnet_cond is None else {"controlnet_cond": controlnet_cond}
        output = self.transformer(
            self.schedule.add_noise(latents, noise, timesteps),
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            timestep=timesteps,
            added_cond_kwargs=None if resolution is None else {"resolution": resolution, "aspect_ratio": aspect_ratio},
            return_dict=False,
            **control,
        )[0]
        return iddpm_loss(output, latents, noise, timesteps, self.schedule)


def _variational_bound(
    predicted_noise: torch.Tensor,
    fraction: torch.Tensor,
    latents: torch.Tensor,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    schedule: NoiseSchedule,
) -> torch.Tensor:
    """KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)) in bits per dimension; at t = 0 the likelihood of z_0 in bins of 1/127.5."""
    betas, alphas_cumprod = schedule.betas, schedule.alphas_cumprod
    previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    variance = betas * (1 - previous) / (1 - alphas_cumprod)
    log_variance = torch.cat([variance[1:2], variance[1:]]).log()  # q's variance is 0 at the first step
    from_origin = betas * previous.sqrt() / (1 - alphas_cumprod)
    from_sample = (1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod)

    def posterior_mean(origin: torch.Tensor) -> torch.Tensor:
        return (
            schedule.at(from_origin, timesteps, origin) * origin + schedule.at(from_sample, timesteps, origin) * noisy
        )

    low, high = (schedule.at(bound, timesteps, latents) for bound in (log_variance, betas.log()))
    weight = (fraction + 1) / 2
    model_log_variance = weight * high + (1 - weight) * low
    model_mean = posterior_mean(schedule.predict_origin(noisy, predicted_noise, timesteps))
    squared = (posterior_mean(latents) - model_mean) ** 2
    kl = 0.5 * (model_log_variance - low - 1 + (low - model_log_variance).exp() + squared * (-model_log_variance).exp())
    nll = -_discretized_log_likelihood(latents, model_mean, 0.5 * model_log_variance)
    at_zero = (timesteps == 0).to(latents.device)
    return torch.where(at_zero, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def _discretized_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of the bin of width 2/255 around x, the outer bins being open; with the reference's approximate normal CDF."""

    def cdf(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper, lower = (cdf((x - mean + side / 255) * (-log_scale).exp()) for side in (1, -1))
    inner = (upper - lower).clamp(min=1e-12).log()
    outer = torch.where(x < -0.999, upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log())
    return torch.where(x.abs() > 0.999, outer, inner)
