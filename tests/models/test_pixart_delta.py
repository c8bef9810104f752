"""PixArt-δ: the ControlNet-Transformer, the edge detector, conversion, distillation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_ext.convert import ConversionError, convert_checkpoint, read_checkpoint
from hf_ext.models.pixart_delta import (
    PRESETS,
    PixArtControlNetModel,
    PixArtControlNetTransformer2DModel,
    PixArtHEDDetector,
    lcm_scheduler,
    lcm_timesteps,
    preprocess_image,
)
from hf_ext.training.pixart_delta import (
    LCM_TRAINING,
    DenoisingTraining,
    LCMDistillation,
    NoiseSchedule,
    UpdateTarget,
    boundary_scalings,
    iddpm_loss,
    lcm_distillation_loss,
    lcm_lora_config,
)
from tests.goldens import FOLDER, read_case
from tests.tiny import TINY

BASE = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 4,
    "cross_attention_dim": 24,
    "sample_size": 8,
    "caption_channels": 16,
}


def base(**overrides) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(**{**BASE, **overrides}).eval()


def inputs(batch: int = 2, height: int = 8, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, height, width, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 5, 16, generator=generator),
        "timestep": torch.full((batch,), 499),
    }


def condition(batch: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(2))


def disturbed(model: nn.Module) -> nn.Module:
    """Off its initial values, so that zero-initialised projections matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class TestSizes:
    @pytest.mark.parametrize(
        ("preset", "count"), [("256", 610_856_096), ("512", 610_856_096), ("1024-ms", 611_349_152)]
    )
    def test_a_transformer_has_exactly_the_published_number_of_parameters(self, preset, count):
        with torch.device("meta"):
            model = PixArtTransformer2DModel(**PRESETS[preset])
        assert model.num_parameters() == count

    def test_the_controlnet_has_exactly_the_published_number_of_parameters(self):
        with torch.device("meta"):
            model = PixArtControlNetModel(**PRESETS["controlnet"])
        assert model.num_parameters() == 294_917_760

    def test_transformer_and_controlnet_add_up(self):
        with torch.device("meta"):
            model = PixArtControlNetTransformer2DModel(**PRESETS["1024-ms"])
        assert model.num_parameters() == 611_349_152 + 294_917_760

    def test_the_edge_detector_has_exactly_the_published_number_of_weights(self):
        with torch.device("meta"):
            model = PixArtHEDDetector()
        assert model.num_parameters() == 14_716_168


class TestControlNet:
    def test_a_fresh_controlnet_changes_nothing(self):
        transformer = base()
        controlled = PixArtControlNetTransformer2DModel.from_transformer(transformer, num_layers=2)
        with torch.no_grad():
            assert torch.equal(
                controlled(**inputs(), controlnet_cond=condition()).sample, transformer(**inputs()).sample
            )

    def test_without_a_condition_it_is_the_base_model(self):
        transformer = base()
        controlled = disturbed(PixArtControlNetTransformer2DModel.from_transformer(transformer, num_layers=2))
        with torch.no_grad():
            assert torch.equal(controlled(**inputs()).sample, transformer(**inputs()).sample)

    def test_a_trained_controlnet_changes_the_output(self):
        controlled = disturbed(PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2))
        with torch.no_grad():
            first, second = (controlled(**inputs(), controlnet_cond=sign * condition()).sample for sign in (1, -1))
        assert (first - second).abs().max() > 1e-3

    def test_it_equals_interleaving_copies_and_blocks(self):
        """The reference's order: copy i - 1, then block i with the copy's residual."""
        model = disturbed(PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2))
        given = inputs()
        with torch.no_grad():
            x, c = model.pos_embed(given["hidden_states"]), model.pos_embed(condition())
            t, embedded = model.adaln_single(given["timestep"], None, batch_size=2, hidden_dtype=x.dtype)
            arguments = (None, model.caption_projection(given["encoder_hidden_states"]), None, t)
            x = model.transformer_blocks[0](x, *arguments)
            for i in range(1, 4):
                if i <= 2:
                    copy = model.controlnet.controlnet_blocks[i - 1]
                    c = copy.transformer_block(x + copy.before_proj(c) if i == 1 else c, *arguments)
                    x = x + copy.after_proj(c)
                x = model.transformer_blocks[i](x, *arguments)
            shift, scale = (model.scale_shift_table + embedded[:, None]).chunk(2, dim=1)
            expected = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
            expected = torch.einsum("nhwpqc->nchpwq", expected.view(2, 4, 4, 2, 2, 8)).reshape(2, 8, 8, 8)
            torch.testing.assert_close(model(**given, controlnet_cond=condition()).sample, expected)

    def test_copies_start_as_the_first_blocks(self):
        transformer = disturbed(base())
        controlnet = PixArtControlNetModel.from_transformer(transformer, num_layers=3)
        for copy, block in zip(controlnet.controlnet_blocks, transformer.transformer_blocks):
            for ours, theirs in zip(copy.transformer_block.parameters(), block.parameters()):
                assert torch.equal(ours, theirs) and ours is not theirs

    def test_joining_shares_the_weights(self):
        transformer = base()
        controlled = PixArtControlNetTransformer2DModel.from_transformer(transformer, num_layers=2)
        own = dict(controlled.named_parameters())
        assert all(own[name] is parameter for name, parameter in transformer.named_parameters())

    def test_the_scale_weighs_the_residuals(self):
        controlled = disturbed(PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2))
        with torch.no_grad():
            off = controlled(**inputs(), controlnet_cond=condition(), conditioning_scale=0.0).sample
            assert torch.equal(off, controlled(**inputs()).sample)

    def test_only_the_controlnet_trains_when_the_rest_is_frozen(self):
        controlled = PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2).requires_grad_(False)
        controlled.controlnet.requires_grad_(True)
        before = {name: parameter.clone() for name, parameter in controlled.named_parameters()}
        training = DenoisingTraining(controlled, null_caption=torch.zeros(5, 16), caption_dropout=0.5).train()
        optimizer = torch.optim.SGD(controlled.controlnet.parameters(), lr=1.0)
        batch = inputs()
        for _ in range(2):  # the first step moves the projections off zero, the second the copies
            loss = training(batch["hidden_states"], batch["encoder_hidden_states"], controlnet_cond=condition()).loss
            loss.backward()
            optimizer.step()
        moved = {name for name, parameter in controlled.named_parameters() if not torch.equal(before[name], parameter)}
        assert moved and all(name.startswith("controlnet.") for name in moved)
        assert any("transformer_block.attn1" in name for name in moved)

    def test_the_controlnet_saves_alone(self, tmp_path):
        controlled = disturbed(PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2))
        controlled.controlnet.save_pretrained(tmp_path)
        joined = PixArtControlNetTransformer2DModel.from_transformer(
            base(), PixArtControlNetModel.from_pretrained(tmp_path)
        )
        for ours, theirs in zip(joined.controlnet.parameters(), controlled.controlnet.parameters()):
            assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("num_layers", [0, 4])
    def test_the_number_of_copies_must_fit_the_depth(self, num_layers):
        with pytest.raises(ValueError, match=f"num_control_layers.*{num_layers}.*1 to 3"):
            PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=num_layers)

    def test_a_controlnet_of_another_width_is_refused(self):
        other = PixArtControlNetModel.from_transformer(
            base(attention_head_dim=24, cross_attention_dim=48), num_layers=2
        )
        with pytest.raises(ValueError, match="attention_head_dim"):
            PixArtControlNetTransformer2DModel.from_transformer(base(), other)

    def test_a_condition_of_another_shape_is_refused(self):
        controlled = PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2)
        with pytest.raises(ValueError, match=r"controlnet_cond.*hidden_states"):
            controlled(**inputs(), controlnet_cond=condition(batch=1))

    @pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 8, 7), (4, 8, 8)])
    def test_latents_of_another_shape_are_refused(self, shape):
        controlled = PixArtControlNetTransformer2DModel.from_transformer(base(), num_layers=2)
        latents = torch.zeros(shape)
        with pytest.raises(ValueError, match="hidden_states"):
            controlled(**inputs() | {"hidden_states": latents}, controlnet_cond=latents)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"attention_head_dim": 5, "cross_attention_dim": 10}, "divisible by 4"),
            ({"attention_head_dim": 8, "cross_attention_dim": 16, "use_additional_conditions": True}, "by 3"),
            ({"cross_attention_dim": 16}, "cross_attention_dim.*24"),
            ({"num_control_layers": 4}, "num_control_layers.*1 to 3"),
        ],
    )
    def test_impossible_configurations_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            PixArtControlNetTransformer2DModel(**{**BASE, "num_control_layers": 2, **change})

    def test_a_multi_scale_model_asks_for_the_size(self):
        controlled = PixArtControlNetTransformer2DModel.from_transformer(
            base(use_additional_conditions=True), num_layers=2
        )
        with pytest.raises(ValueError, match="added_cond_kwargs"):
            controlled(**inputs(), controlnet_cond=condition())

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(
        heads=st.integers(1, 3),
        depth=st.integers(2, 4),
        patch=st.sampled_from([1, 2]),
        height=st.integers(1, 5),
        width=st.integers(1, 5),
        channels=st.integers(1, 4),
        data=st.data(),
    )
    def test_any_configuration_and_size_gives_noise_of_the_latents_shape(
        self, heads, depth, patch, height, width, channels, data
    ):
        layers = data.draw(st.integers(1, depth - 1))
        model = PixArtControlNetTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=4,
            num_layers=depth,
            in_channels=channels,
            out_channels=2 * channels,
            cross_attention_dim=4 * heads,
            caption_channels=6,
            sample_size=4,
            patch_size=patch,
            num_control_layers=layers,
        ).eval()
        latents = torch.randn(2, channels, patch * height, patch * width)
        with torch.no_grad():
            output = disturbed(model)(
                latents, torch.randn(2, 3, 6), torch.tensor([1, 999]), controlnet_cond=torch.randn_like(latents)
            ).sample
        assert output.shape == (2, 2 * channels, patch * height, patch * width)
        assert output.isfinite().all()


class TestEdges:
    def test_edges_are_floats_between_zero_and_one(self):
        detector = disturbed(PixArtHEDDetector((4, 8, 8), (1, 2, 1)))
        with torch.no_grad():
            output = detector(torch.rand(2, 3, 20, 30))
        assert output.edge.shape == (2, 1, 20, 30) and output.condition.shape == (2, 3, 20, 30)
        assert output.edge.min() >= 0 and output.edge.max() <= 1
        assert len(output.edge.unique()) > 256

    def test_the_condition_is_the_weighted_edge_map_in_the_vae_s_range(self):
        detector = disturbed(PixArtHEDDetector((4, 8), (1, 1)))
        with torch.no_grad():
            edge, condition = detector(torch.rand(1, 3, 8, 8), strength=0.5, return_dict=False)
        torch.testing.assert_close(condition, ((0.5 * edge - 0.5) / 0.5).expand(-1, 3, -1, -1))

    @pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 3, 16)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match="pixel_values"):
            PixArtHEDDetector((4, 4, 4), (1, 1, 1))(torch.zeros(shape))

    def test_stages_must_agree(self):
        with pytest.raises(ValueError, match="layers_per_block"):
            PixArtHEDDetector((4, 4, 4), (1, 1))


class TestPreprocessing:
    @pytest.mark.parametrize("size", [(30, 40), (40, 30), (64, 64), (1, 1), (7, 200)])
    def test_any_size_fits_the_target(self, size):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        pixels = preprocess_image(image, 24, 32)
        assert pixels.shape == (1, 3, 24, 32) and pixels.min() >= 0 and pixels.max() <= 1

    def test_the_right_size_is_left_alone(self):
        pixels = torch.rand(2, 3, 24, 32)
        assert torch.equal(preprocess_image(pixels, 24, 32), pixels)

    def test_arrays_tensors_and_pictures_agree(self):
        array = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        expected = preprocess_image(Image.fromarray(array), 24, 32)
        for form in (array, array / 255, torch.from_numpy(array).permute(2, 0, 1), [array]):
            torch.testing.assert_close(preprocess_image(form, 24, 32), expected)

    def test_it_is_the_reference_s_resize_and_crop_when_that_covers(self):
        """Resize(min(h, w)), CenterCrop([h, w]) on an image of nearly the target's aspect ratio."""
        array = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        resized = np.array(Image.fromarray(array).resize((int(40 * 60 / 50), 40), Image.Resampling.BILINEAR))
        expected = torch.from_numpy(resized[:, 4:44]).permute(2, 0, 1)[None] / 255
        torch.testing.assert_close(preprocess_image(Image.fromarray(array), 40, 40), expected)

    def test_grey_becomes_three_channels(self):
        pixels = preprocess_image(np.full((8, 8), 0.25), 8, 8)
        assert pixels.shape == (1, 3, 8, 8) and (pixels == 0.25).all()

    @pytest.mark.parametrize(
        "image",
        [
            torch.zeros(2, 8, 8),
            torch.zeros(1, 1, 3, 8, 8),
            torch.full((3, 8, 8), math.nan),
            torch.full((3, 8, 8), 2.0),
            torch.zeros(3, 0, 8),
            "photo.png",
            [],
        ],
    )
    def test_other_input_is_refused(self, image):
        with pytest.raises(ValueError, match="control image"):
            preprocess_image(image, 8, 8)


class TestConversion:
    @pytest.mark.parametrize("name", ["control_ms", "control_half"])
    def test_a_file_of_the_authors_form_converts(self, name, tmp_path):
        case = read_case(FOLDER / "pixart_delta" / name)
        torch.save({"state_dict": case["state_dict"]}, tmp_path / "PixArt-XL-2-1024-ControlNet.pth")
        state = read_checkpoint(tmp_path / "PixArt-XL-2-1024-ControlNet.pth")
        model = convert_checkpoint("pixart_delta", state, case["arguments"])
        assert isinstance(model, PixArtControlNetTransformer2DModel)

    def test_a_half_controlnet_on_a_multi_scale_base_ignores_the_size_embedders(self):
        case = read_case(FOLDER / "pixart_delta" / "control_ms")
        model = convert_checkpoint(
            "pixart_delta", case["state_dict"], case["arguments"] | {"model": "ControlPixArtHalf"}
        )
        assert not model.use_additional_conditions

    def test_what_is_missing_or_left_over_is_listed(self):
        case = read_case(FOLDER / "pixart_delta" / "base_ms")
        state = {name: tensor for name, tensor in case["state_dict"].items() if name != "t_block.1.bias"}
        with pytest.raises(ConversionError, match=r"(?s)left over: something.*missing: adaln_single\.linear\.bias"):
            convert_checkpoint("pixart_delta", state | {"something": torch.zeros(1)}, case["arguments"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "arguments\\['model'\\].*PixArtMS"),
            ({"model": "DiT"}, "DiT.*PixArtMS"),
            ({"model": "PixArtMS", "mlp_ratio": 2.0}, "mlp_ratio.*4"),
            ({"model": "PixArtMS", "window_size": 7}, "window_size"),
            ({"model": "PixArtMS", "widht": 7}, "widht.*hidden_size"),
            ({"model": "PixArtMS", "hidden_size": 100, "num_heads": 16}, "hidden_size.*num_heads"),
        ],
    )
    def test_arguments_that_cannot_be_converted_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint("pixart_delta", {}, arguments)


class TestSampling:
    def test_timesteps_are_the_authors(self):
        assert lcm_timesteps(4) == [999, 759, 519, 279]
        assert lcm_timesteps(1) == [999]
        assert lcm_timesteps(50)[-1] == 19

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(steps=st.integers(1, 100), original=st.integers(1, 100))
    def test_timesteps_descend_on_the_grid(self, steps, original):
        if steps > original:
            with pytest.raises(ValueError, match="num_inference_steps"):
                lcm_timesteps(steps, original)
            return
        timesteps, stride = lcm_timesteps(steps, original), 1000 // original
        assert len(timesteps) == steps and timesteps == sorted(set(timesteps), reverse=True)
        assert all((t + 1) % stride == 0 for t in timesteps)

    def test_the_scheduler_has_pixart_s_betas(self):
        assert torch.allclose(lcm_scheduler().alphas_cumprod, NoiseSchedule().alphas_cumprod.float(), rtol=1e-4)


class TestDistillation:
    def draw(self, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        latents, noise = torch.randn(2, batch, 4, 8, 8, generator=generator)
        return latents, noise, torch.randint(50, (batch,), generator=generator)

    def distillation(self, student: nn.Module, teacher: nn.Module | None = None) -> LCMDistillation:
        return LCMDistillation(student, teacher, null_caption=torch.zeros(5, 16))

    def test_the_function_is_the_identity_at_time_zero(self):
        sample = torch.randn(2, 4, 8, 8)
        c_skip, c_out = boundary_scalings(torch.tensor([0, 0]), sample)
        assert (c_skip == 1).all() and (c_out == 0).all()

    def test_the_last_grid_point_s_target_is_the_teacher_s_sample(self):
        latents, noise, _ = self.draw()

        def zero(sample, timesteps):
            return torch.zeros_like(sample)

        output = lcm_distillation_loss(latents, noise, torch.zeros(4, dtype=torch.long), zero, zero, zero, zero)
        assert torch.equal(output.target, output.x_prev)

    def test_gradients_reach_the_student_only(self):
        teacher, student = base(), base()
        distillation = self.distillation(student, teacher)
        distillation(*self.draw()[:1], torch.randn(4, 5, 16)).loss.backward()
        assert all(p.grad is not None for p in student.parameters())
        assert all(p.grad is None for p in (*teacher.parameters(), *distillation.target.parameters()))

    def test_the_target_follows_the_student(self):
        distillation = self.distillation(base(), base())
        start = distillation.target.proj_out.weight.clone()
        with torch.no_grad():
            distillation.student.proj_out.weight.add_(1)
        distillation.update_target()
        torch.testing.assert_close(distillation.target.proj_out.weight, start + 0.05)

    def test_the_teacher_is_not_in_the_checkpoint(self):
        names = self.distillation(base(), base()).state_dict()
        assert {name.split(".")[0] for name in names} == {"student", "target"}

    def test_train_leaves_teacher_and_target_alone(self):
        distillation = self.distillation(base(), base()).train()
        assert distillation.student.training and not distillation.teacher.training and not distillation.target.training

    def test_lora_needs_one_network(self):
        from peft import get_peft_model

        student = get_peft_model(base(), lcm_lora_config(rank=2))
        distillation = self.distillation(student)
        latents, noise, index = self.draw()
        batch = {"encoder_hidden_states": torch.randn(4, 5, 16), "noise": noise, "index": index}
        fresh = distillation(latents, **batch)
        full = self.distillation(base(), base())(latents, **batch)
        torch.testing.assert_close(fresh.loss, full.loss)  # an adapter starts as the identity
        fresh.loss.backward()
        assert {name.split(".")[-3] for name, p in student.named_parameters() if p.grad is not None} == {
            "lora_A",
            "lora_B",
        }

    def test_lora_s_teacher_is_the_base_model_whatever_the_adapter(self):
        from peft import get_peft_model

        student = get_peft_model(base(), lcm_lora_config(rank=2, init_lora_weights=False))
        latents, noise, index = self.draw()
        batch = {"encoder_hidden_states": torch.randn(4, 5, 16), "noise": noise, "index": index}
        with torch.no_grad():
            adapted, full = (
                d(latents, **batch) for d in (self.distillation(student), self.distillation(base(), base()))
            )
        torch.testing.assert_close(adapted.x_prev, full.x_prev)
        assert not torch.allclose(adapted.model_pred, full.model_pred)

    def test_lora_covers_every_linear_map(self):
        from peft import get_peft_model

        student = get_peft_model(base(use_additional_conditions=True), lcm_lora_config())
        plain = [
            name for name, m in student.named_modules() if type(m) in (nn.Linear, nn.Conv2d) and "lora" not in name
        ]
        assert all(name.endswith("base_layer") for name in plain)

    def test_trainer_runs_and_resumes_it(self, tmp_path):
        from hf_ext.reproductions.training import TensorDataset

        def trained(steps: int, resume: bool = False) -> LCMDistillation:
            torch.manual_seed(0)
            distillation = self.distillation(base(), base())
            data = TensorDataset(latents=self.draw(8)[0], encoder_hidden_states=torch.ones(8, 5, 16))
            arguments = {**LCM_TRAINING, "learning_rate": 1e-2, "warmup_steps": 0}
            arguments |= {
                "output_dir": str(tmp_path),
                "max_steps": steps,
                "save_steps": 2,
                "report_to": "none",
                "disable_tqdm": True,
            }
            trainer = Trainer(
                distillation,
                TrainingArguments(**arguments, use_cpu=True),
                train_dataset=data,
                callbacks=[UpdateTarget()],
            )
            trainer.train(resume_from_checkpoint=resume)
            return distillation

        trained(2)
        resumed, whole = trained(4, resume=True).state_dict(), trained(4).state_dict()
        for name, tensor in whole.items():
            torch.testing.assert_close(resumed[name], tensor, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(whole["student.proj_out.weight"], whole["target.proj_out.weight"])

    def test_without_teacher_and_adapter_it_refuses(self):
        with pytest.raises(ValueError, match="teacher"):
            self.distillation(base())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"loss_type": "l1"}, "loss_type.*huber"),
            ({"index": torch.full((4,), 50)}, "index.*49"),
            ({"noise": torch.zeros(4, 4, 8, 7)}, "same shape"),
            ({"num_ddim_timesteps": 1001}, "num_ddim_timesteps"),
        ],
    )
    def test_bad_arguments_are_refused(self, change, message):
        latents, noise, index = self.draw()
        networks = dict.fromkeys(("student", "teacher", "teacher_uncond", "target"), lambda sample, timesteps: sample)
        with pytest.raises(ValueError, match=message):
            lcm_distillation_loss(**{"latents": latents, "noise": noise, "index": index, **networks, **change})


class TestDenoising:
    def test_the_variational_bound_is_the_divergence_of_the_two_normals(self):
        schedule = NoiseSchedule()
        generator = torch.Generator().manual_seed(0)
        latents, noise, predicted, fraction = torch.randn(4, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
        timesteps = torch.tensor([1, 300, 999])
        noisy = schedule.add_noise(latents, noise, timesteps)
        abar, before = (schedule.alphas_cumprod[timesteps - k].view(-1, 1, 1, 1) for k in (0, 1))
        beta = schedule.betas[timesteps].view(-1, 1, 1, 1)
        variance = beta * (1 - before) / (1 - abar)

        def mean(origin):
            return (beta * before.sqrt() * origin + (1 - before) * (1 - beta).sqrt() * noisy) / (1 - abar)

        true = torch.distributions.Normal(mean(latents), variance.sqrt())
        origin = (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt()
        log_variance = (fraction + 1) / 2 * beta.log() + (1 - (fraction + 1) / 2) * variance.log()
        model = torch.distributions.Normal(mean(origin), (0.5 * log_variance).exp())
        expected = torch.distributions.kl_divergence(true, model).mean((1, 2, 3)) / math.log(2)
        loss = iddpm_loss(torch.cat([predicted, fraction], 1), latents, noise, timesteps, schedule)
        torch.testing.assert_close(loss.vb, expected)

    def test_at_the_first_step_it_is_the_likelihood_of_the_bin(self):
        """A variance wide against the bin: its probability is the density times its width."""
        schedule = NoiseSchedule(beta_start=0.02, beta_end=0.02)
        latents, noise = torch.zeros(1, 4, 2, 2, dtype=torch.float64), torch.ones(1, 4, 2, 2, dtype=torch.float64)
        loss = iddpm_loss(torch.cat([noise, noise], 1), latents, noise, torch.tensor([0]), schedule)
        density = torch.distributions.Normal(0.0, math.sqrt(0.02)).log_prob(torch.tensor(0.0)) + math.log(2 / 255)
        assert loss.vb.item() == pytest.approx(-density.item() / math.log(2), rel=2e-3)

    def test_variance_does_not_move_the_mean(self):
        output = torch.randn(2, 8, 4, 4, requires_grad=True)
        loss = iddpm_loss(output, torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([5, 500]))
        (gradient,) = torch.autograd.grad(loss.vb.sum(), output)
        assert (gradient[:, :4] == 0).all() and (gradient[:, 4:] != 0).any()

    def test_a_model_without_variance_has_the_squared_error(self):
        output, latents, noise = torch.randn(3, 2, 4, 4, 4)
        loss = iddpm_loss(output, latents, noise, torch.tensor([5, 500]))
        assert loss.vb is None
        torch.testing.assert_close(loss.loss, ((output - noise) ** 2).mean())

    def test_other_channels_are_refused(self):
        with pytest.raises(ValueError, match=r"3 channels.*4 or 8"):
            iddpm_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.tensor([1]))

    def test_captions_are_dropped_while_training_only(self):
        seen = []

        class Listener(nn.Module):
            def forward(self, sample, encoder_hidden_states, **kwargs):
                seen.append(encoder_hidden_states)
                return (sample,)

        training = DenoisingTraining(Listener(), null_caption=torch.full((5, 16), 7.0), caption_dropout=1.0)
        for mode in (True, False):
            training.train(mode)(torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 16))
        assert (seen[0] == 7).all() and (seen[1] == 0).all()


def test_the_exact_denoiser_has_no_distillation_loss_and_samples_its_only_image():
    from hf_ext.reproductions.pixart_delta import exactness

    fresh, *losses, one, two, four = (row.ours for row in exactness(None))
    assert fresh == 0
    assert losses[0] < 0.01 and max(losses[1:]) < 1e-8  # at the last grid point the target is still a little noisy
    assert max(one, two, four) < 1e-4


def test_the_smallest_instance_is_a_multi_scale_controlnet():
    config, given = TINY["pixart_delta"]()
    model = disturbed(PixArtControlNetTransformer2DModel.from_config(config))
    with torch.no_grad():
        assert model(**given).sample.shape == (2, 8, 8, 6)
