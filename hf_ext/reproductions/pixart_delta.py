"""PixArt-δ: exact properties of its ControlNet and its distillation, and the tiny pipeline that the card ships.

The demo is the whole method at the smallest size: an autoencoder turns 8x8 digits (scikit-learn's) into 4x4 latents of 4 channels, a PixArt
transformer learns to denoise them under captions such as "the digit seven", and latent consistency distillation makes four steps enough.
The text encoder is a tiny T5 over bytes that stays as it was initialised: captions here are names of classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
)
from PIL import Image
from torch import nn
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel, set_seed

from hf_ext.files import atomic_folder
from hf_ext.models.pixart_delta import (
    PixArtAlphaControlNetPipeline,
    PixArtControlNetTransformer2DModel,
    lcm_scheduler,
    lcm_timesteps,
)
from hf_ext.reproductions import Experiment, Row, Run
from hf_ext.reproductions.training import TensorDataset, train
from hf_ext.training.pixart_delta import (
    DenoisingTraining,
    LCMDistillation,
    NoiseSchedule,
    UpdateTarget,
    lcm_distillation_loss,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTION_LENGTH = 20
# Less noise at the end than PixArt's 0.02: there the first step multiplies the network's error by 157, here by 21.
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.012}


def caption(digit: int) -> str:
    return f"the digit {NAMES[digit]}"


# --- exactness ---------------------------------------------------------------------------------------------------------------------


def exactness(run: Run) -> list[Row]:
    return [*fresh_controlnet(), *oracle_distillation(), *oracle_sampling()]


@torch.no_grad()
def fresh_controlnet() -> list[Row]:
    """A ControlNet as initialised does not change the base model's output."""
    set_seed(0)
    base = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        num_layers=6,
        cross_attention_dim=96,
        caption_channels=32,
        sample_size=16,
    ).eval()
    controlled = PixArtControlNetTransformer2DModel.from_transformer(base, num_layers=3)
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "encoder_hidden_states": torch.randn(2, 8, 32),
        "timestep": torch.tensor([999, 19]),
    }
    difference = controlled(**inputs, controlnet_cond=torch.randn(2, 4, 16, 16)).sample - base(**inputs).sample
    return [
        Row("fresh ControlNet against its base, largest difference", difference.abs().max().item(), note="must be 0")
    ]


class Oracle:
    """The exact noise prediction when the data are one fixed z_0: e = (z - sqrt(abar) z_0) / sqrt(1 - abar)."""

    def __init__(self, origin: torch.Tensor):
        self.origin, self.schedule = origin, NoiseSchedule()

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        timesteps = timesteps.expand(len(sample))
        noiseless = self.schedule.add_noise(self.origin, torch.zeros_like(self.origin), timesteps)
        sigma = self.schedule.at((1 - self.schedule.alphas_cumprod).sqrt(), timesteps, sample)
        return (sample - noiseless) / sigma


def oracle_distillation() -> list[Row]:
    """With student = teacher = target = oracle the loss vanishes, but at the last grid point, where the target is still noisy."""
    generator = torch.Generator().manual_seed(0)
    origin, noise = torch.randn(2, 4, 4, 8, 8, generator=generator, dtype=torch.float64)
    oracle = Oracle(origin)
    rows = []
    for i, note in {0: "its target is z_s at s = 0", 1: "must vanish", 2: "must vanish", 49: "must vanish"}.items():
        loss = lcm_distillation_loss(origin, noise, torch.full((4,), i), oracle, oracle, oracle, oracle).loss
        rows.append(Row(f"distillation loss of the exact denoiser, i = {i}", loss.item(), note=f"float64; {note}"))
    return rows


def oracle_sampling() -> list[Row]:
    """LCM sampling with the exact denoiser returns the one image there is."""
    generator = torch.Generator().manual_seed(0)
    origin, start = torch.randn(2, 4, 4, 8, 8, generator=generator)
    oracle, rows = Oracle(origin), []
    for steps in (1, 2, 4):
        scheduler, sample = lcm_scheduler(), start
        scheduler.set_timesteps(timesteps=lcm_timesteps(steps))
        for t in scheduler.timesteps:
            sample = scheduler.step(oracle(sample, t), t, sample, generator=generator).prev_sample
        error = (sample - origin).abs().max().item()
        rows.append(Row(f"{steps}-step LCM sampling of the exact denoiser, largest error", error, note="must vanish"))
    return rows


# --- demo --------------------------------------------------------------------------------------------------------------------------


def demo(run: Run) -> list[Row]:
    """Trains autoencoder, teacher and student; holds 4 LCM steps against 4 DDIM steps of the teacher, then ships the pipeline."""
    (images, labels), _ = digits()
    set_seed(0)
    pipeline = untrained()
    autoencoder(run, pipeline.vae, images)
    latents = encode(pipeline.vae, images)
    captions, masks = captions_of(pipeline)
    columns = {"latents": latents, "encoder_hidden_states": captions[labels], "encoder_attention_mask": masks[labels]}
    null = {"null_caption": captions[-1], "null_caption_mask": masks[-1]}

    teacher = pipeline.transformer
    steps = {
        "lr_scheduler_type": "linear",
        "warmup_steps": 50,
        "per_device_train_batch_size": int(run.options["batch"]),
    }
    train(
        replace(run, folder=run.folder / "teacher"),
        DenoisingTraining(teacher, schedule=NoiseSchedule(**BETAS), **null),
        TensorDataset(**columns),
        max_steps=int(run.options["teacher_steps"]),
        learning_rate=float(run.options["teacher_rate"]),
        **steps,
    )
    student = PixArtTransformer2DModel.from_config(teacher.config)
    student.load_state_dict(teacher.state_dict())
    guidance, grid = float(run.options["guidance"]), int(run.options["ddim_timesteps"])
    train(
        replace(run, folder=run.folder / "lcm"),
        LCMDistillation(
            student,
            teacher,
            schedule=NoiseSchedule(**BETAS),
            guidance_scale=guidance,
            num_ddim_timesteps=grid,
            **null,
        ),
        TensorDataset(**columns),
        callbacks=[UpdateTarget()],
        max_steps=int(run.options["lcm_steps"]),
        learning_rate=float(run.options["lcm_rate"]),
        **steps,
    )
    rows = judge(pipeline, student, guidance)
    pipeline.register_modules(transformer=student.eval(), scheduler=lcm_scheduler(**BETAS))
    with atomic_folder(run.card) as folder:
        if run.card.is_dir():
            shutil.copytree(run.card, folder, dirs_exist_ok=True)
        pipeline.save_pretrained(folder)
        teacher.save_pretrained(folder / "teacher")
    return rows


def digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """scikit-learn's digits, 1437 for training and 360 held out: images (.., 1, 8, 8) in [-1, 1], and labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data, target = load_digits(return_X_y=True)
    images, labels = torch.tensor(data / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(target)
    parts = train_test_split(np.arange(len(data)), test_size=360, stratify=target, random_state=0)
    training, held_out = ((images[part], labels[part]) for part in parts)
    return training, held_out


def untrained() -> PixArtAlphaControlNetPipeline:
    text_encoder = T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2))
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=4,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=4,
        patch_size=1,
    )
    return PixArtAlphaControlNetPipeline(ByT5Tokenizer(), text_encoder.eval(), vae, transformer, lcm_scheduler(**BETAS))


class Autoencoding(nn.Module):
    """Squared error of the reconstruction, and a little pressure on the latents."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        posterior = self.vae.encode(images).latent_dist
        error = (self.vae.decode(posterior.sample()).sample - images).square().mean()
        return {"loss": error + 1e-3 * posterior.kl().mean() / images[0].numel()}


def autoencoder(run: Run, vae: AutoencoderKL, images: torch.Tensor) -> None:
    train(
        replace(run, folder=run.folder / "vae"),
        Autoencoding(vae),
        TensorDataset(images=images),
        max_steps=int(run.options["vae_steps"]),
        learning_rate=4e-3,
        per_device_train_batch_size=64,
        lr_scheduler_type="linear",
    )
    with torch.no_grad():
        scale = 1 / vae.encode(images).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=scale)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    return vae.encode(images).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def captions_of(pipeline: PixArtAlphaControlNetPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (11, tokens, channels) and masks (11, tokens) of the ten captions and the empty one."""
    texts = [*map(caption, range(10)), ""]
    return pipeline.encode_prompt(texts, False, max_sequence_length=CAPTION_LENGTH)[:2]


def sample(pipeline: PixArtAlphaControlNetPipeline, wanted: Sequence[int], seed: int = 0, **kwargs: Any) -> np.ndarray:
    """(images, 8, 8) in [0, 1]; under the pipeline's LCM scheduler in four steps."""
    output = pipeline(
        [caption(digit) for digit in wanted],
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        clean_caption=False,
        max_sequence_length=CAPTION_LENGTH,
        **kwargs,
    )
    return output.images[..., 0]


def draw(
    pipeline: PixArtAlphaControlNetPipeline, digits: Sequence[int], seed: int = 0, size: int = 64
) -> list[Image.Image]:
    """One picture for each of `digits` (0 to 9), drawn in 4 LCM steps and enlarged from 8x8 to `size` pixels a side."""
    pixels = (255 * sample(pipeline, digits, seed)).round().astype(np.uint8)
    return [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels]


def judge(
    pipeline: PixArtAlphaControlNetPipeline, student: nn.Module, guidance: float, per_digit: int = 50
) -> list[Row]:
    """Samples of student and teacher: how many are recognised as what was asked for, and their distance from held-out digits."""
    teacher, (_, (images, labels)) = pipeline.transformer, digits()
    real = images.numpy()[:, 0] / 2 + 0.5
    lcm, solver = lcm_scheduler(**BETAS), DPMSolverMultistepScheduler(**BETAS)
    ddim = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    contestants = [
        ("4 LCM steps", student, lcm, 4, 1.0),
        ("2 LCM steps", student, lcm, 2, 1.0),
        ("teacher, 4 DDIM steps", teacher, ddim, 4, 1 + guidance),
        ("teacher, 2 DDIM steps", teacher, ddim, 2, 1 + guidance),
        ("teacher, 20 DPM-Solver++ steps", teacher, solver, 20, 1 + guidance),
    ]
    wanted = [digit for digit in range(10) for _ in range(per_digit)]
    pictures = {"real digits, held out": (real, labels.tolist(), "what the classifier can do")}
    for name, transformer, scheduler, steps, scale in contestants:
        pipeline.register_modules(transformer=transformer.eval(), scheduler=scheduler)
        drawn = sample(pipeline, wanted, num_inference_steps=steps, guidance_scale=scale)
        evaluations = steps * (2 if scale > 1 else 1)
        pictures[name] = (drawn, wanted, f"{len(wanted)} samples, {evaluations} evaluations of the network each")
    pipeline.register_modules(transformer=teacher)
    accuracies = [Row(f"recognised, {name}", recognised(x, y), note=note) for name, (x, y, note) in pictures.items()]
    distances = [
        Row(f"squared MMD, {name}", squared_mmd(x, real)) for name, (x, *_) in pictures.items() if x is not real
    ]
    shipped = {"dataset": "scikit-learn digits, captioned", "metric_type": "accuracy"}  # rows for the model-index
    return [*(replace(row, **shipped) if "LCM" in row.metric else row for row in accuracies), *distances]


def recognised(pictures: np.ndarray, wanted: Sequence[int]) -> float:
    """The share of pictures (.., 8, 8) in [0, 1] that a classifier of real digits takes for what was asked for."""
    return float((classifier().predict(pictures.reshape(-1, 64)) == np.asarray(wanted)).mean())


@cache
def classifier() -> Any:
    from sklearn.svm import SVC

    (images, labels), _ = digits()
    return SVC(gamma=0.25).fit(images.numpy().reshape(-1, 64) / 2 + 0.5, labels.numpy())


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy under a Gaussian kernel as wide as the median distance within `y`."""
    from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    gamma = 1 / np.median(euclidean_distances(y)[np.triu_indices(len(y), 1)]) ** 2
    within = [(rbf_kernel(a, gamma=gamma).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(sum(within) - 2 * rbf_kernel(x, y, gamma=gamma).mean())


EXPERIMENTS = {
    "exactness": Experiment(
        "Exact properties of the ControlNet and of latent consistency distillation", exactness, minutes=0.1
    ),
    "demo": Experiment(
        "Captioned digits in four steps: the pipeline that the card ships",
        demo,
        minutes=7,
        options={
            "vae_steps": (600, "of the autoencoder"),
            "teacher_steps": (1200, "of the denoiser"),
            "teacher_rate": (2e-3, "its learning rate"),
            "lcm_steps": (600, "of the distillation"),
            "lcm_rate": (1e-3, "its learning rate"),
            "guidance": (1.0, "w of the distillation; pipelines call it guidance_scale = 1 + w"),
            "ddim_timesteps": (25, "of the distillation's grid; the paper has 50"),
            "batch": (128, "images a step, for denoiser and distillation"),
        },
    ),
}
