"""PixArt-δ's pipeline: text and edges to pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from PIL import Image
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from hf_ext.models.pixart_delta import PixArtControlNetModel, PixArtHEDDetector, lcm_scheduler, lcm_timesteps
from hf_ext.models.pixart_delta.scheduling_pixart_delta import LINEAR_BETAS
from hf_ext.pipelines.pixart_delta import PixArtAlphaControlNetPipeline, encode_prompt_in_8bit

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
OPTIONS = {"clean_caption": False, "max_sequence_length": 20, "output_type": "pt"}


def components(**transformer) -> dict:
    torch.manual_seed(0)
    text_encoder = T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 3,
        "cross_attention_dim": 24,
        "caption_channels": 32,
        "sample_size": 8,
        "use_additional_conditions": True,
    }
    return {
        "tokenizer": ByT5Tokenizer(),
        "text_encoder": text_encoder.eval(),
        "vae": vae.eval(),
        "transformer": PixArtTransformer2DModel(**{**config, **transformer}).eval(),
        "scheduler": lcm_scheduler(),
    }


def make(scheduler=None, **transformer) -> PixArtAlphaControlNetPipeline:
    parts = components(**transformer)
    controlnet = PixArtControlNetModel.from_transformer(parts["transformer"], num_layers=2).eval()
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parts["scheduler"] = scheduler or parts["scheduler"]
    pipeline = PixArtAlphaControlNetPipeline(
        **parts, controlnet=controlnet, hed_detector=PixArtHEDDetector((4, 4), (1, 1)).eval()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dpm() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(**LINEAR_BETAS)


@pytest.fixture(scope="module")
def pipeline() -> PixArtAlphaControlNetPipeline:
    return make()


def test_photograph_and_caption_give_a_picture(pipeline):
    (picture,) = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS | {"output_type": "pil"}).images
    assert isinstance(picture, Image.Image) and picture.size == (16, 16)


def test_the_control_matters(pipeline):
    with_edges, without = (
        pipeline("a cat", image=image, generator=seeded(), **OPTIONS).images for image in (PHOTO, None)
    )
    assert (with_edges - without).abs().max() > 1e-3


def test_edges_found_beforehand_give_the_same(pipeline):
    from hf_ext.models.pixart_delta import preprocess_image

    with torch.no_grad():
        edge = pipeline.hed_detector(preprocess_image(PHOTO, 16, 16)).edge
    ours = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    torch.testing.assert_close(pipeline("a cat", control_image=edge, generator=seeded(), **OPTIONS).images, ours)


def test_the_control_may_be_latents(pipeline):
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    pictures = [pipeline("a cat", control_image=s * latents, generator=seeded(), **OPTIONS).images for s in (1, -1)]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


def test_a_scale_of_zero_is_no_control(pipeline):
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    off = pipeline("a cat", control_image=latents, conditioning_scale=0.0, generator=seeded(), **OPTIONS).images
    torch.testing.assert_close(off, pipeline("a cat", generator=seeded(), **OPTIONS).images)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_a_batch_is_its_items(guidance_scale):
    pipeline = make(dpm())
    prompts, photos = ["a cat", "a dog"], [PHOTO, PHOTO.rotate(90)]
    latents = torch.randn(2, 4, 8, 8, generator=seeded())
    control = torch.randn(2, 4, 8, 8, generator=seeded(4))
    options = OPTIONS | {"guidance_scale": guidance_scale, "num_inference_steps": 3, "output_type": "latent"}
    both = pipeline(prompts, control_image=control, latents=latents, **options).images
    for i in range(2):
        alone = pipeline(prompts[i], control_image=control[i : i + 1], latents=latents[i : i + 1], **options).images
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert pipeline(prompts, image=photos, generator=[seeded(1), seeded(2)], **options).images.shape == (2, 4, 8, 8)


def test_one_control_serves_every_picture(pipeline):
    pictures = pipeline(["a", "b"], image=PHOTO, num_images_per_prompt=2, generator=seeded(), **OPTIONS).images
    assert pictures.shape == (4, 3, 16, 16)


def test_without_control_it_is_upstream_s_pipeline():
    parts = components(use_additional_conditions=False) | {"scheduler": dpm()}
    ours, theirs = PixArtAlphaControlNetPipeline(**parts), PixArtAlphaPipeline(**parts)
    options = OPTIONS | {"num_inference_steps": 4, "use_resolution_binning": False}
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    expected = theirs("a cat", generator=seeded(), **options).images
    torch.testing.assert_close(ours("a cat", generator=seeded(), **options).images, expected)


def test_lcm_takes_four_of_the_authors_timesteps_without_guidance(pipeline):
    seen = []

    def note(pipeline, step, timestep, state):
        seen.append((step, int(timestep), len(state["latents"])))

    pipeline("a", generator=seeded(), callback_on_step_end=note, **OPTIONS)
    assert seen == [(i, t, 1) for i, t in enumerate(lcm_timesteps(4))]


def test_timesteps_may_be_given(pipeline):
    seen = []
    pipeline(
        "a",
        timesteps=[999, 499],
        generator=seeded(),
        callback_on_step_end=lambda p, i, t, s: seen.append(int(t)),
        **OPTIONS,
    )
    assert seen == [999, 499]


def test_a_callback_may_replace_the_latents(pipeline):
    def zero(pipeline, step, timestep, state):
        return {"latents": torch.zeros_like(state["latents"])}

    latents = pipeline("a", callback_on_step_end=zero, **OPTIONS | {"output_type": "latent"}).images
    assert (latents == 0).all()


def test_the_seed_decides(pipeline):
    first, again, other = (pipeline("a", image=PHOTO, generator=seeded(s), **OPTIONS).images for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_a_multi_scale_transformer_is_told_the_size():
    pipeline = make()
    pictures = [
        pipeline("a", height=h, width=w, latents=torch.ones(1, 4, h // 2, w // 2), **OPTIONS).images
        for h, w in [(8, 16), (16, 8)]
    ]
    assert pictures[0].shape[2:] == (8, 16)
    assert not torch.allclose(pictures[0], pictures[1].mT)


def test_it_saves_and_loads_as_any_pipeline(pipeline, tmp_path):
    expected = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is PixArtAlphaControlNetPipeline
    torch.testing.assert_close(loaded("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images, expected)


def test_a_controlnet_goes_into_a_plain_pixart_pipeline(tmp_path):
    parts = components()
    PixArtAlphaPipeline(**parts).save_pretrained(tmp_path)
    controlnet = PixArtControlNetModel.from_transformer(parts["transformer"], num_layers=2)
    pipeline = PixArtAlphaControlNetPipeline.from_pretrained(tmp_path, controlnet=controlnet)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    pictures = [pipeline("a", control_image=c, generator=seeded(), **OPTIONS).images for c in (latents, None)]
    torch.testing.assert_close(*pictures)  # fresh: it changes nothing yet


def test_models_take_turns_on_the_accelerator():
    pipeline = make()
    expected = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    pipeline.enable_model_cpu_offload(device="cpu")
    hooked = {name for name, module in pipeline.components.items() if hasattr(module, "_hf_hook")}
    assert hooked == {"text_encoder", "hed_detector", "transformer", "vae"}
    assert torch.equal(pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images, expected)


def test_two_stages_with_an_8bit_text_encoder_draw_nearly_the_same(pipeline, tmp_path):
    import bitsandbytes

    pipeline.save_pretrained(tmp_path)
    embeddings = encode_prompt_in_8bit(tmp_path, ["a cat", "a dog"], device_map="cpu", max_sequence_length=20)
    exact = pipeline.encode_prompt(["a cat", "a dog"], False, max_sequence_length=20)[0].detach()
    assert embeddings["negative_prompt_embeds"] is None
    error = (embeddings["prompt_embeds"] - exact).norm() / exact.norm()
    assert 0 < error < 0.05  # quantized, and close
    second = DiffusionPipeline.from_pretrained(tmp_path, text_encoder=None)
    second.set_progress_bar_config(disable=True)
    assert not any(isinstance(m, bitsandbytes.nn.Linear8bitLt) for m in second.transformer.modules())
    ours = second(**embeddings, image=PHOTO, generator=seeded(), **OPTIONS).images
    expected = pipeline(["a cat", "a dog"], image=PHOTO, generator=seeded(), **OPTIONS).images
    assert (ours - expected).abs().max() < 0.02


def test_a_half_precision_transformer_takes_full_precision_captions():
    pipeline = make()
    pipeline.transformer.bfloat16()
    pipeline.vae.bfloat16()
    pictures = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    assert pictures.dtype == torch.bfloat16 and pictures.isfinite().all()


def test_an_lcm_lora_goes_onto_the_transformer():
    from peft import get_peft_model

    from hf_ext.training.pixart_delta import lcm_lora_config

    pipeline = make()
    expected = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    pipeline.transformer = get_peft_model(pipeline.transformer, lcm_lora_config(rank=2, init_lora_weights=False)).eval()
    adapted = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    assert (adapted - expected).abs().max() > 1e-3
    with pipeline.transformer.disable_adapter():
        plain = pipeline("a cat", image=PHOTO, generator=seeded(), **OPTIONS).images
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "image": PHOTO, "control_image": PHOTO}, "not both"),
        ({"prompt": "a", "height": 24, "width": 18}, "divisible by"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "num_inference_steps": 51}, "num_inference_steps"),
        ({"prompt": ["a", "b", "c"], "control_image": torch.zeros(2, 4, 8, 8)}, "2 control images.*3"),
        ({"prompt": "a", "control_image": torch.full((3, 8, 8), torch.nan)}, "control_image.*finite"),
        ({"prompt": "a", "latents": torch.full((1, 4, 8, 8), torch.inf)}, "latents.*finite"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["latent"]}, "latents"),
    ],
)
def test_bad_arguments_are_refused(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**OPTIONS | arguments)


def test_control_needs_a_controlnet():
    pipeline = PixArtAlphaControlNetPipeline(**components())
    with pytest.raises(ValueError, match="controlnet="):
        pipeline("a", control_image=PHOTO, **OPTIONS)


def test_a_photograph_needs_a_detector():
    parts = components()
    pipeline = PixArtAlphaControlNetPipeline(
        **parts, controlnet=PixArtControlNetModel.from_transformer(parts["transformer"], 2)
    )
    with pytest.raises(ValueError, match="hed_detector"):
        pipeline("a", image=PHOTO, **OPTIONS)


def test_the_card_s_pipeline_draws_the_digits_that_are_asked_for():
    from hf_ext.catalog import METHODS
    from hf_ext.reproductions.pixart_delta import draw, recognised, sample

    pipeline = DiffusionPipeline.from_pretrained(METHODS["pixart_delta"].card)
    pipeline.set_progress_bar_config(disable=True)
    wanted = [digit for digit in range(10) for _ in range(10)]
    assert recognised(sample(pipeline, wanted, seed=1), wanted) > 0.8
    assert [picture.size for picture in draw(pipeline, [3, 4], size=32)] == [(32, 32)] * 2
