"""PixArt-δ: text and an edge map to an image, in 2 to 4 LCM steps or 14 to 20 of another sampler.

Paper: PIXART-δ (arXiv 2401.05252). Reference: PixArt-alpha/PixArt-alpha, scripts/interface_controlnet.py and scripts/inference_lcm.py.

Text encoding, latents and resolution bins are upstream's `PixArtAlphaPipeline`. Where the port differs on purpose:
- unconditional guidance uses the text encoder's "" with its own mask, as upstream does; the reference uses a learned null caption with the
  prompt's mask, which can be passed as `negative_prompt_embeds`;
- the condition is repeated under guidance, so that batches work; the reference relies on broadcasting, which works for one image only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ImagePipelineOutput,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SchedulerMixin,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
    retrieve_timesteps,
)
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from hf_ext.models.pixart_delta import (
    PixArtControlNetModel,
    PixArtControlNetTransformer2DModel,
    PixArtHEDDetector,
    lcm_timesteps,
    preprocess_image,
)

# Sizes that multi-scale models are trained on, by the transformer's sample size; other sample sizes take any image size
ASPECT_RATIO_BINS = {32: ASPECT_RATIO_256_BIN, 64: ASPECT_RATIO_512_BIN, 128: ASPECT_RATIO_1024_BIN}


class PixArtAlphaControlNetPipeline(PixArtAlphaPipeline):
    """Text to image with PixArt, controlled by an edge map where one is given.

    Args:
        tokenizer, text_encoder: T5; both None where prompts come as embeddings, see `encode_prompt_in_8bit`.
        vae: decodes latents, and encodes the control image.
        transformer: a `PixArtControlNetTransformer2DModel`, or a `PixArtTransformer2DModel` (then nothing can control it).
        scheduler: `lcm_scheduler()` for a distilled transformer, `DPMSolverMultistepScheduler` or another for others.
        hed_detector: draws the edges of a photograph given as `image`.
        controlnet: put into `transformer` when the pipeline is made; saved as part of it.
    """

    model_cpu_offload_seq = "text_encoder->hed_detector->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder", "hed_detector"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "controlnet_cond"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKL,
        transformer: PixArtTransformer2DModel,
        scheduler: SchedulerMixin,
        hed_detector: PixArtHEDDetector | None = None,
        controlnet: PixArtControlNetModel | None = None,
    ):
        if controlnet is not None:
            transformer = PixArtControlNetTransformer2DModel.from_transformer(transformer, controlnet)
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self.register_modules(hed_detector=hed_detector)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] = "",
        image: Any = None,
        control_image: Any = None,
        conditioning_scale: float | None = None,
        edge_strength: float = 1.0,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (upstream's signature)
        clean_caption: bool = True,
        use_resolution_binning: bool = True,
        max_sequence_length: int = 120,
    ) -> ImagePipelineOutput | tuple:
        """Draws images.

        Args:
            prompt: one or more captions; `prompt_embeds` and `prompt_attention_mask` may be given instead.
            image: a photograph (or one for each prompt) whose edges, found by `hed_detector`, control the drawing.
            control_image: the edge map itself, or latents of shape (1 or prompts, channels, height, width) of it. Images as PIL, arrays or
                tensors, see `preprocess_image`.
            conditioning_scale: weight of the control; the ControlNet's own if None.
            edge_strength: weight of the edges found in `image`.
            num_inference_steps: 4 if None and the scheduler is LCM, 20 otherwise.
            timesteps: in descending order, instead of `num_inference_steps`. The default under LCM is the authors' spacing.
            guidance_scale: above 1 for classifier-free guidance; 1 if None and the scheduler is LCM (guidance is distilled into the
                transformer), 4.5 otherwise.
            height, width: of the image in pixels; the transformer's sample size if None. Give a photograph's own to keep its shape: with
                `use_resolution_binning` the nearest size that the transformer knows is drawn, and the picture scaled to what was asked.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as (pipeline, step, timestep, {name: tensor}) after each step; may return replacements.

        Raises:
            ValueError: arguments that exclude each other, a size that does not divide into patches, control without a ControlNet.
        """
        # 1. Check inputs, fill in defaults
        is_lcm = isinstance(self.scheduler, LCMScheduler)
        guidance_scale = guidance_scale if guidance_scale is not None else 1.0 if is_lcm else 4.5
        num_inference_steps = num_inference_steps if num_inference_steps is not None else 4 if is_lcm else 20
        sample_size = self.transformer.config.sample_size * self.vae_scale_factor
        requested = height, width = height or sample_size, width or sample_size
        if use_resolution_binning and self.transformer.config.sample_size in ASPECT_RATIO_BINS:
            ratios = ASPECT_RATIO_BINS[self.transformer.config.sample_size]
            height, width = self.image_processor.classify_height_width_bin(height, width, ratios=ratios)
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            1,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        self.check_control(image, control_image, height, width)
        for name, given in {"latents": latents, "prompt_embeds": prompt_embeds, "control_image": control_image}.items():
            if isinstance(given, torch.Tensor) and not given.isfinite().all():
                raise ValueError(f"`{name}` must be finite; it holds NaN or infinity")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"No tensors called {sorted(unknown)} for the callback; there are {self._callback_tensor_inputs}"
            )

        # 2. Encode the prompt
        device, dtype = self._execution_device, self.transformer.dtype
        do_classifier_free_guidance = guidance_scale > 1.0
        prompt_embeds, prompt_mask, negative_embeds, negative_mask = self.encode_prompt(
            prompt,
            do_classifier_free_guidance,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            device=device,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            clean_caption=clean_caption,
            max_sequence_length=max_sequence_length,
        )
        batch_size = len(prompt_embeds)
        if do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_embeds, prompt_embeds])
            prompt_mask = torch.cat([negative_mask, prompt_mask])
        prompt_embeds = prompt_embeds.to(dtype)

        # 3. Prepare timesteps: under LCM the authors' spacing, which differs from upstream's
        if timesteps is None and is_lcm:
            scheduler = self.scheduler.config
            timesteps = lcm_timesteps(
                num_inference_steps, scheduler.original_inference_steps, scheduler.num_train_timesteps
            )
        timesteps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps)
        step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 4. Prepare latents, the control's latents, and what a multi-scale transformer is told about the size
        channels = self.transformer.config.in_channels
        latents = self.prepare_latents(batch_size, channels, height, width, dtype, device, generator, latents)
        controlnet_cond = self.prepare_control(image, control_image, edge_strength, latents, height, width, generator)
        control_kwargs = {} if controlnet_cond is None else {"conditioning_scale": conditioning_scale}
        added_cond_kwargs = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            size = torch.tensor([[height, width]], device=device, dtype=dtype).expand(len(prompt_embeds), -1)
            added_cond_kwargs = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}

        # 5. Denoise
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                repeats = 2 if do_classifier_free_guidance else 1
                model_input = self.scheduler.scale_model_input(torch.cat([latents] * repeats), t)
                if controlnet_cond is not None:
                    control_kwargs["controlnet_cond"] = torch.cat([controlnet_cond] * repeats)
                noise_pred = self.transformer(
                    model_input,
                    encoder_hidden_states=prompt_embeds,
                    encoder_attention_mask=prompt_mask,
                    timestep=t.expand(len(model_input)),
                    added_cond_kwargs=added_cond_kwargs,
                    return_dict=False,
                    **control_kwargs,
                )[0][:, :channels]  # the rest predicts variance
                if do_classifier_free_guidance:
                    uncond, cond = noise_pred.chunk(2)
                    noise_pred = uncond + guidance_scale * (cond - uncond)
                latents = self.scheduler.step(noise_pred, t, latents, **step_kwargs, return_dict=False)[0]
                if callback_on_step_end is not None:
                    state = {"latents": latents, "prompt_embeds": prompt_embeds, "controlnet_cond": controlnet_cond}
                    state = {name: state[name] for name in callback_on_step_end_tensor_inputs}
                    state = callback_on_step_end(self, i, t, state) or {}
                    latents = state.get("latents", latents)
                    prompt_embeds = state.get("prompt_embeds", prompt_embeds)
                    controlnet_cond = state.get("controlnet_cond", controlnet_cond)
                progress_bar.update()

        # 6. Decode
        images = latents
        if output_type != "latent":
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            images = self.image_processor.resize_and_crop_tensor(images, requested[1], requested[0])
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_control(self, image: Any, control_image: Any, height: int, width: int) -> None:
        patch = self.vae_scale_factor * self.transformer.config.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"`height` {height} and `width` {width} must be divisible by {patch}, the size of a patch in pixels"
            )
        if image is None and control_image is None:
            return
        if image is not None and control_image is not None:
            raise ValueError("Give a photograph as `image` or its edges as `control_image`, not both")
        if image is not None and self.hed_detector is None:
            raise ValueError(
                "`image` needs a `hed_detector` in the pipeline; give the edges themselves as `control_image`"
            )
        if "num_control_layers" not in self.transformer.config:
            raise ValueError("The transformer has no ControlNet in it; make the pipeline with `controlnet=`")

    def prepare_control(
        self,
        image: Any,
        control_image: Any,
        edge_strength: float,
        latents: torch.Tensor,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor | None:
        """The condition as scaled latents, one for each of `latents`; None without one."""
        if image is None and control_image is None:
            return None
        if isinstance(control_image, torch.Tensor) and control_image.shape[1:] == latents.shape[1:]:
            condition = control_image.to(latents)
        else:
            pixels = preprocess_image(control_image if image is None else image, height, width)
            pixels = pixels.to(latents)
            if image is None:
                condition = 2 * pixels - 1
            else:
                condition = self.hed_detector(pixels.to(self.hed_detector.dtype), edge_strength).condition
            condition = condition[:, : self.vae.config.in_channels].to(self.vae.dtype)
            generator = generator[: len(condition)] if isinstance(generator, list) else generator
            condition = self.vae.encode(condition).latent_dist.sample(generator) * self.vae.config.scaling_factor
        if len(latents) % len(condition):
            raise ValueError(f"{len(condition)} control images do not go with {len(latents)} images to draw")
        return condition.repeat_interleave(len(latents) // len(condition), dim=0).to(latents)


def encode_prompt_in_8bit(
    folder: str,
    prompt: str | list[str],
    negative_prompt: str | list[str] = "",
    do_classifier_free_guidance: bool = False,
    device_map: str | dict[str, Any] = "auto",
    subfolder: str = "text_encoder",
    **kwargs: Any,
) -> dict[str, torch.Tensor | None]:
    """The first of two stages that fit a small GPU: loads the text encoder alone, in 8 bits, encodes, and frees it again (section 3.3).

    The larger of the two stages bounds the memory. For T5-XXL's encoder that is the first: 4.63e9 weights of linear layers at one byte and
    0.13e9 of the embedding at two make 4.9 GB; the transformer, 0.61e9 weights (0.91e9 with its ControlNet) at two bytes, comes after it is
    freed. Activations and the VAE's decoder come on top; the paper reports less than 8 GB at 1024 px. The second stage:

        embeddings = encode_prompt_in_8bit(folder, prompt)
        pipeline = PixArtAlphaControlNetPipeline.from_pretrained(folder, text_encoder=None, torch_dtype=torch.float16).to("cuda")
        image = pipeline(**embeddings).images[0]

    Args:
        folder: a pipeline's folder or Hub id.
        prompt, negative_prompt: as for the pipeline.
        do_classifier_free_guidance: whether the negative prompt is needed (not under LCM).
        device_map, subfolder: of the text encoder.
        kwargs: further arguments of `encode_prompt`, such as `max_sequence_length`.

    Returns:
        Keyword arguments for the pipeline: `prompt_embeds`, `prompt_attention_mask` and their negative counterparts.
    """
    from transformers import BitsAndBytesConfig

    text_encoder = T5EncoderModel.from_pretrained(
        folder, subfolder=subfolder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map=device_map
    )
    pipeline = PixArtAlphaControlNetPipeline.from_pretrained(
        folder, text_encoder=text_encoder, transformer=None, vae=None
    )
    with torch.no_grad():
        encoded = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance, negative_prompt, device=text_encoder.device, **kwargs
        )
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    del pipeline, text_encoder
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return dict(zip(names, encoded))
