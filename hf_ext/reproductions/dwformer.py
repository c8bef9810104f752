"""DWFormer and MPGNet: their sizes, and both on a known synthetic display (`hf_ext.data.display`)."""

from __future__ import annotations

import numpy as np
import torch
from transformers import TrainingArguments, pipeline
from transformers.trainer_utils import get_last_checkpoint

from hf_ext.data.display import LIGHT_RATE, DisplayPairs, through_display
from hf_ext.data.photos import NOT_TRAINED_ON, photograph
from hf_ext.files import replaced_files
from hf_ext.models.dwformer import (
    DWFormerConfig,
    DWFormerForImageRestoration,
    DWFormerImageProcessor,
    MPGNetConfig,
    MPGNetDiscriminator,
    MPGNetModel,
)

from . import Experiment, Row, Run
from .counting import multiply_adds
from .super_resolution import training_crops
from .training import TensorDataset, train

PARAMETERS = {"DWFormer": 1_447_047, "MPGNet": 8_327_590, "discriminator": 4_378_625}


def measure_cost(run: Run) -> list[Row]:
    """Parameters and multiply-additions, beside those counted on the authors' networks."""
    with torch.device("meta"):
        models = {
            "DWFormer": DWFormerForImageRestoration(DWFormerConfig()),
            "MPGNet": MPGNetModel(MPGNetConfig()),
            "discriminator": MPGNetDiscriminator(MPGNetConfig()),
        }
    rows = [Row(f"parameters, {name}", m.num_parameters(), str(PARAMETERS[name])) for name, m in models.items()]
    operations = multiply_adds(lambda: models["DWFormer"], 1, 3, 256, 256)
    return [*rows, Row("multiply-adds at 256x256, DWFormer (G)", operations, "13.29")]


def smooth_images(count: int, size: int, seed: int) -> torch.Tensor:
    """(count, 3, size, size) in [0, 1]: random numbers on a coarse grid, interpolated."""
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Of RGB in [0, 1], the mean over images, in dB."""
    return -10 * (images - truth).square().flatten(1).mean(1).log10().mean().item()


def fit_smooth_images(run: Run) -> list[Row]:
    """A small DWFormer on random smooth images: what 300 steps restore of images that it has not seen."""
    torch.manual_seed(0)
    steps, batch_size = int(run.options["steps"]), 8
    clean, held_out = smooth_images(256, 48, seed=0), smooth_images(32, 48, seed=1)
    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(pixel_values=through_display(clean, generator), labels=clean)
    model = DWFormerForImageRestoration(
        DWFormerConfig(
            hidden_sizes=[8, 12, 20, 12, 8], mlp_ratios=[2, 3, 1, 2, 4], depths=[1, 2, 1, 1, 2], squeeze_factor=2
        )
    )
    train(
        run,
        model,
        dataset,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
    )
    degraded = through_display(held_out, generator)
    with torch.no_grad():
        restored = model(degraded).reconstruction
    return [
        Row("PSNR of unseen smooth images through the display (dB)", psnr(degraded, held_out)),
        Row("PSNR of the same, restored (dB)", psnr(restored, held_out)),
    ]


def train_demo(run: Run) -> list[Row]:
    """Trains the small DWFormer of the card on ten photographs, and measures it on two others."""
    torch.manual_seed(0)
    steps, batch_size = int(run.options["steps"]), 8
    model = DWFormerForImageRestoration(
        DWFormerConfig(
            hidden_sizes=[16, 24, 32, 24, 16],
            mlp_ratios=[2, 2, 2, 2, 2],
            depths=[1, 1, 2, 1, 1],
            global_pool="softmax",  # a sum would depend on the size of the image
        )
    )
    train(
        run,
        model,
        DisplayPairs(training_crops(scale=1, size=48, length=steps * batch_size)),
        max_steps=steps,
        save_steps=200,
        per_device_train_batch_size=batch_size,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=30,
    )
    with replaced_files(run.card) as folder:
        model.save_pretrained(folder)
        DWFormerImageProcessor().save_pretrained(folder)
    restore, rows = pipeline("image-to-image", str(run.card)), []
    for name in NOT_TRAINED_ON:
        clean = as_tensor(photograph(name))
        degraded = through_display(clean, torch.Generator().manual_seed(0)).clamp(0, 1)
        restored = as_tensor(restore(degraded[0].movedim(0, -1).numpy()))
        brightened = (degraded / torch.tensor(LIGHT_RATE).view(3, 1, 1)).clamp(0, 1)
        rows += [
            Row(f"PSNR of {name}.jpg, not trained on, through the display (dB)", psnr(degraded, clean)),
            Row("PSNR of the same, divided by the display's light rates (dB)", psnr(brightened, clean)),
            Row(
                f"PSNR of DWFormer on {name}.jpg, not trained on (dB)",
                psnr(restored, clean),
                dataset=f"{name}.jpg of scikit-learn through a synthetic display",
                metric_type="psnr",
            ),
        ]
    return [*rows, Row("parameters", model.num_parameters())]


def as_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 255


def simulate_display(run: Run) -> list[Row]:
    """A small MPGNet learns the display as a GAN: how close simulated photographs, not trained on, come to real ones."""
    from hf_ext.training.mpgnet import MPGNetTrainer

    torch.manual_seed(0)
    steps, batch_size = int(run.options["steps"]), 4
    config = MPGNetConfig(
        light_rate_hidden_size=16,
        blur_hidden_size=12,
        num_blur_layers=2,
        noise_hidden_size=12,
        num_noise_layers=1,
        r_vector_size=8,
        discriminator_hidden_size=12,
        initializer_range=0.05,
    )
    model, discriminator = MPGNetModel(config), MPGNetDiscriminator(config)
    untrained = compare_with_display(model)
    trainer = MPGNetTrainer(
        model,
        TrainingArguments(
            output_dir=str(run.folder),
            seed=0,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            adam_beta1=0.5,
            save_steps=200,
            save_total_limit=1,
            logging_steps=50,
            report_to="none",
            dataloader_pin_memory=False,
        ),
        discriminator,
        train_dataset=DisplayPairs(training_crops(scale=1, size=32, length=steps * batch_size), simulate=True),
    )
    last = get_last_checkpoint(str(run.folder)) if run.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trained = compare_with_display(model)
    return [
        Row("PSNR of the untrained simulation against the display (dB)", untrained["psnr"]),
        Row("PSNR of the simulation against the display (dB)", trained["psnr"]),
        Row("PSNR of the clean images against the display (dB)", trained["clean"]),
        *(
            Row(f"brightness of the simulation over the clean image's, {color}", rate, note=f"the display's: {truth}")
            for color, rate, truth in zip(("red", "green", "blue"), trained["rates"], LIGHT_RATE)
        ),
    ]


@torch.no_grad()
def compare_with_display(model: MPGNetModel) -> dict[str, object]:
    """Of 48x48 parts of the photographs that were not trained on."""
    parts = [as_tensor(photograph(name)).unfold(2, 48, 96).unfold(3, 48, 96) for name in NOT_TRAINED_ON]
    clean = torch.cat([part[0].permute(1, 2, 0, 3, 4).flatten(0, 1) for part in parts])
    generator = torch.Generator().manual_seed(0)
    real = through_display(clean, generator)
    simulated = model.eval()(clean, generator=generator).degraded_pixel_values
    brightness = simulated.mean((0, 2, 3)) / clean.mean((0, 2, 3))
    return {"psnr": psnr(simulated, real), "clean": psnr(clean, real), "rates": brightness.tolist()}


EXPERIMENTS = {
    "smooth": Experiment(
        "A small DWFormer on random smooth images",
        fit_smooth_images,
        minutes=1,
        options={"steps": (300, "optimizer steps of 8 images")},
    ),
    "simulate": Experiment(
        "A small MPGNet learns a known display",
        simulate_display,
        minutes=3,
        options={"steps": (500, "steps of the generator, of 4 crops")},
    ),
    "demo": Experiment(
        "The small model that the card ships",
        train_demo,
        minutes=3,
        options={"steps": (400, "optimizer steps of 8 crops")},
    ),
    "cost": Experiment("Parameters and multiply-adds", measure_cost, minutes=0.2),
}
