"""CBNet: sizes, what links do, every family of backbones, supervision of the assistants, upstream detectors, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.models.cbnet import CompositeBackbone, CompositeBackboneConfig, CompositeBackboneWithPyramid
from hf_ext.models.cbnet.modeling_cbnet import CompositeLink, FeaturePyramid
from hf_ext.training.cbnet import AssistantSupervisionMixin, supervise_assistants
from tests.goldens import FOLDER, read_case
from tests.models.vision import count_parameters, image, used
from tests.passport import CHECKS, Subject
from tests.tiny import TINY

# Of the table in the specification. The reference's second ResNet keeps a BatchNorm of 64 channels that nothing uses; ours does not.
UNUSED_NORM = 2 * 64
PARAMETERS = {
    "db-swin-t": 55_682_676,
    "db-swin-s": 98_318_484,
    "db-swin-b": 174_631_792,
    "db-swin-l": 392_569_128,
    "db-resnet50": 51_384_000 - UNUSED_NORM,
    "db-resnet101": 89_368_256 - UNUSED_NORM,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4, "drop_path_rate": 0.0},
    "swinv2": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 4, "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "pvt_v2": {
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "sr_ratios": [4, 2, 1, 1],
        "mlp_ratios": [2, 2, 2, 2],
    },
}
OURS = ("nextvit", "fmvit", "rmt")


def composite(backbone="swin", **fields) -> CompositeBackbone:
    """Small, with links that do something, in eval mode."""
    if isinstance(backbone, str):
        backbone = {"model_type": backbone, **BACKBONES[backbone]}
    torch.manual_seed(0)
    config = CompositeBackboneConfig(backbone_config=backbone, **{"zero_init": False, **fields})
    return used(CompositeBackbone(config)).eval()


@pytest.mark.parametrize("preset", CompositeBackboneConfig.PRESETS)
def test_presets_have_the_number_of_parameters_of_the_specification(preset):
    assert count_parameters(CompositeBackbone, CompositeBackboneConfig.from_preset(preset)) == PARAMETERS[preset]


@torch.no_grad()
def test_a_fresh_composite_of_resnets_computes_what_one_resnet_computes():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], out_features=STAGES)
    single = used(ResNetBackbone(config)).eval()
    lead = CompositeBackbone.from_backbones(single, prune_stages=1)(image(56, 72)).feature_maps
    for ours, theirs in zip(lead, single(image(56, 72)).feature_maps, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_the_assistant_computes_what_one_backbone_computes():
    torch.manual_seed(0)
    single = SwinBackbone(SwinConfig(**BACKBONES["swin"], out_features=STAGES[:3])).eval()
    outputs = CompositeBackbone.from_backbones(single)(image(40, 48))
    expected = single(image(40, 48)).feature_maps
    for ours, theirs in zip(outputs.assistant_feature_maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs.feature_maps[0], expected[0])  # the identity link is there from the start


@torch.no_grad()
def test_checkpoints_of_several_backbones_are_composed_in_order(tmp_path):
    for seed in range(2):
        torch.manual_seed(seed)
        SwinBackbone(SwinConfig(**BACKBONES["swin"])).save_pretrained(tmp_path / str(seed))
    model = CompositeBackbone.from_backbones(tmp_path / "0", tmp_path / "1")
    for seed, backbone in enumerate(model.backbones):
        expected = SwinBackbone.from_pretrained(tmp_path / str(seed)).swin.encoder.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.swin.encoder.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_family_composes_to_the_maps_of_the_single_backbone(backbone):
    model = composite(backbone, prune_stages=1)
    single = AutoBackbone.from_config(
        AutoConfig.for_model(backbone, **BACKBONES[backbone], out_features=model.out_features)
    ).eval()
    images = image(32, 32)
    outputs = model(images)
    expected = [x.shape for x in single(images).feature_maps]
    assert [x.shape for x in outputs.feature_maps] == expected
    assert [x.shape for x in outputs.assistant_feature_maps] == expected
    assert model.channels == [shape[1] for shape in expected]


@torch.no_grad()
@pytest.mark.parametrize("slug", OURS)
def test_backbones_of_this_package_compose(slug):
    config = TINY[slug]()[0]
    config.out_features = STAGES
    single = used(AutoBackbone.from_config(config)).eval()
    outputs = CompositeBackbone.from_backbones(single)(image(64, 64))
    for ours, theirs in zip(outputs.assistant_feature_maps, single(image(64, 64)).feature_maps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert [x.shape for x in outputs.feature_maps] == [x.shape for x in outputs.assistant_feature_maps]


@torch.no_grad()
def test_links_go_from_a_stage_and_all_after_it_to_the_input_of_that_stage():
    model = composite("swin")
    assert [len(links) for links in model.links[0].stages] == [3, 2, 1]
    model = composite("resnet", prune_stages=1)
    assert [len(links) for links in model.links[0].stages] == [0, 2, 1]
    assert [(link.conv.in_channels, link.conv.out_channels) for link in model.links[0].stages[1]] == [(16, 8), (16, 8)]


@torch.no_grad()
def test_three_backbones_feed_each_other_in_a_chain():
    model = composite("swin", num_backbones=3)
    before = model(image(40, 40))
    assert len(before.assistant_feature_maps) == 2 * len(before.feature_maps)
    model.links[1].stages[0][1].conv.weight.add_(1.0)
    after = model(image(40, 40))
    for ours, theirs in zip(after.assistant_feature_maps, before.assistant_feature_maps):
        assert torch.equal(ours, theirs)
    assert not torch.equal(after.feature_maps[0], before.feature_maps[0])


@torch.no_grad()
def test_pruned_stages_are_the_assistants():
    outputs = composite("resnet", prune_stages=1)(image(32, 32))
    assert outputs.feature_maps[0] is outputs.assistant_feature_maps[0]
    assert not torch.equal(outputs.feature_maps[1], outputs.assistant_feature_maps[1])


def test_the_lead_has_no_stem_and_no_pruned_stages():
    lead = composite("resnet", prune_stages=2).backbones[1]
    assert {name.split(".")[2] for name, _ in lead.named_parameters()} == {"2"}


def test_zero_links_start_as_zero_and_get_a_gradient():
    model = composite("resnet", zero_init=True, prune_stages=1)
    sum(x.square().mean() for x in model(image(64, 64)).feature_maps).backward()
    for link in (module for module in model.modules() if isinstance(module, CompositeLink)):
        assert not link.norm.weight.any()
        assert link.norm.bias.grad.abs().sum() > 0


def test_frozen_stages_and_batch_norm_stay_as_they_are_in_training():
    model = composite("resnet", frozen_stages=1, freeze_batch_norm=True).train()
    assert not model.backbones[0].embedder.training
    assert not any(p.requires_grad for p in model.backbones[0].encoder.stages[0].parameters())
    assert all(p.requires_grad for p in model.backbones[1].encoder.stages[1].parameters())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(image(64, 64, batch=2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("check", ["batch_independence", "gradient_checkpointing", "save_and_load"])
def test_composite_of_resnets_passes_the_passport(check):
    config = CompositeBackboneConfig(
        backbone_config={"model_type": "resnet", **BACKBONES["resnet"]}, prune_stages=1, freeze_batch_norm=True
    )
    CHECKS[check](Subject(CompositeBackbone, config, {"pixel_values": image(40, 40, batch=2)}))


@pytest.mark.parametrize("check", ["batch_independence", "gradients", "save_and_load"])
def test_composite_with_pyramid_passes_the_passport(check):
    config, inputs = TINY["cbnet"]()
    config.pyramid_size = 4
    CHECKS[check](Subject(CompositeBackboneWithPyramid, config, {"pixel_values": inputs["pixel_values"]}))


@torch.no_grad()
def test_the_assistants_pyramid_is_computed_in_training_only():
    config, inputs = TINY["cbnet"]()
    model = CompositeBackboneWithPyramid(config)
    evaluated, trained = (model.train(mode)(inputs["pixel_values"]) for mode in (False, True))
    assert evaluated.assistant_feature_maps is None
    assert [x.shape for x in trained.assistant_feature_maps] == [x.shape for x in evaluated.feature_maps]
    assert len(evaluated.feature_maps) == 5


@torch.no_grad()
def test_the_pyramids_extra_levels_are_every_second_pixel():
    pyramid = FeaturePyramid([4, 4], 4, num_levels=4)
    levels = pyramid((image(9, 7, channels=4), image(5, 4, channels=4)))
    assert torch.equal(levels[2], levels[1][..., ::2, ::2])
    assert torch.equal(levels[3], levels[2][..., ::2, ::2])


def detector(backbone="resnet") -> DeformableDetrForObjectDetection:
    torch.manual_seed(0)
    backbone_config = composite(backbone, prune_stages=1, zero_init=True, out_features=["stage2", "stage3"]).config
    config = DeformableDetrConfig(
        backbone_config=backbone_config,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=2,
        num_queries=4,
        num_labels=3,
        dropout=0.0,
    )
    return DeformableDetrForObjectDetection(config)


def detection_batch() -> dict:
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])} for _ in range(2)]
    return {"pixel_values": image(64, 96, batch=2), "labels": labels}


def test_supervised_loss_is_the_leads_plus_half_of_the_assistants():
    model = detector().eval()
    inputs = detection_batch()
    plain = model(**inputs)
    with torch.no_grad():
        backbone = model.model.backbone.model
        maps = backbone(inputs["pixel_values"]).assistant_feature_maps
        with backbone.giving(maps):
            assistant = model(**inputs)
    supervised = supervise_assistants(model, inputs)
    torch.testing.assert_close(supervised.loss, plain.loss + 0.5 * assistant.loss)
    assert torch.equal(supervised.logits, plain.logits)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_detector_trains_with_supervised_assistants(backbone):
    model = detector(backbone).train()
    inputs = detection_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = supervise_assistants(model, inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    links = [module for module in model.modules() if isinstance(module, CompositeLink)]
    assert all(any(p.any() for p in link.parameters()) for link in links)
    moved = [link.norm.weight if backbone == "resnet" else link.conv.weight for link in links]
    assert all(weight.any() for weight in moved), "links that began as zero have not moved"


def test_trainer_mixin_supervises_in_training_only(tmp_path):
    class DetectorTrainer(AssistantSupervisionMixin, Trainer):
        pass

    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True)
    trainer = DetectorTrainer(model=detector(), args=arguments)
    inputs = detection_batch()
    model = trainer.model.eval()
    assert torch.equal(trainer.compute_loss(model, inputs), model(**inputs).loss)
    assert trainer.compute_loss(model.train(), inputs) > model(**inputs).loss


@torch.no_grad()
def test_detector_is_saved_and_loaded(tmp_path):
    model = detector("swin").eval()
    model.save_pretrained(tmp_path)
    loaded = DeformableDetrForObjectDetection.from_pretrained(tmp_path).eval()
    images = detection_batch()["pixel_values"]
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_trains_under_upernet():
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=TINY["cbnet"]()[0],
        hidden_size=8,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        auxiliary_in_channels=32,
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config).train()
    output = supervise_assistants(
        model, {"pixel_values": image(64, 96, batch=2), "labels": torch.ones(2, 64, 96, dtype=torch.long)}
    )
    assert output.logits.shape == (2, 3, 64, 96)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())


def test_auto_classes_find_the_composite(tmp_path):
    model = composite("resnet")
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is CompositeBackbone
    assert type(AutoBackbone.from_config(model.config)) is CompositeBackbone


@torch.no_grad()
def test_a_detectors_checkpoint_gives_its_backbone():
    case = read_case(FOLDER / "cbnet" / "swin_fpn")
    state = case["state_dict"] | {"roi_head.bbox_head.0.fc_cls.weight": torch.zeros(2, 2)}
    model = convert_checkpoint("cbnet", state, {"backbone": case["arguments"]["backbone"]})
    assert type(model) is CompositeBackbone
    assert torch.equal(
        model.backbones[1].hidden_states_norms.stage4.weight, state["backbone.cb_modules.1.norm3.weight"]
    )


def reference_names(model: CompositeBackbone) -> dict[str, torch.Tensor]:
    """A ResNet composite's tensors under the reference's names."""
    names = {
        "embedder.embedder.convolution": "conv1",
        "embedder.embedder.normalization": "bn1",
        "backbones.": "cb_modules.",
        ".shortcut.convolution": ".downsample.0",
        ".shortcut.normalization": ".downsample.1",
        "links.0.stages.": "cb_linears.",
        ".conv.": ".0.",
        ".norm.": ".1.",
    }
    for i in range(4):
        names |= {f"encoder.stages.{i}.layers": f"layer{i + 1}"}
        names |= {f"layer.{i}.convolution": f"conv{i + 1}", f"layer.{i}.normalization": f"bn{i + 1}"}
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ({"depth": 18, "cb_del_stages": 0, "base_channels": 4}, [4, 8, 16, 32]),
        ({"depth": 50, "cb_del_stages": 2, "base_channels": 2, "style": "caffe"}, [8, 16, 32, 64]),
    ],
)
def test_resnets_of_either_block_and_style_are_converted(arguments, widths):
    from hf_ext.convert.cbnet import config

    model = used(CompositeBackbone(config(arguments))).eval()
    converted = convert_checkpoint("cbnet", reference_names(model), arguments)
    assert converted.channels == widths
    for ours, theirs in zip(converted(image(32, 32)).feature_maps, model(image(32, 32)).feature_maps):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_swins_with_positions_and_without_embedding_norm_run_on_images_of_any_size():
    backbone = {"model_type": "swin", **BACKBONES["swin"], "use_absolute_embeddings": True, "image_size": 32}
    model = composite(backbone, embedding_norm=False)
    assert [tuple(x.shape[2:]) for x in model(image(50, 38)).feature_maps] == [(13, 10), (7, 5), (4, 3)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_backbones": 1}, "`num_backbones` must be at least 2, not 1"),
        ({"prune_stages": 4}, r"`prune_stages` must lie in \[0, 4\), not 4"),
        ({"frozen_stages": 5}, r"`frozen_stages` must lie in \[-1, 4\], not 5"),
        ({"pyramid_size": 0}, "`pyramid_size` must be positive, not 0"),
        ({"backbone_config": {"model_type": "bert"}}, "must be of a backbone with stages, not bert"),
        ({"out_features": ["stage7"]}, "stage7"),
    ],
)
def test_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CompositeBackboneConfig(**fields)


def test_backbone_of_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="Composite backbones are made of resnet"):
        composite({"model_type": "focalnet", "embed_dim": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]})


def test_backbones_of_different_shapes_are_refused():
    backbones = [
        ResNetBackbone(ResNetConfig(embedding_size=8, hidden_sizes=[8, width], depths=[1, 1], layer_type="basic"))
        for width in (8, 16)
    ]
    with pytest.raises(ValueError, match="Backbone 1 lacks these weights, or has them in another shape"):
        CompositeBackbone.from_backbones(*backbones)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (0, 3, 32, 32), (1, 3, 0, 32)])
def test_images_of_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="pixel_values"):
        composite("swin")(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dims": 96}, "has no arguments"),
        ({"depth": 7}, "`depth` must be one of"),
        ({"depth": 50, "style": "tensorflow"}, "`style` must be"),
        ({"depth": 50, "cb_inplanes": [64, 64, 128, 256, 512]}, "`cb_inplanes` must be"),
        ({"qk_scale": 2.0}, "`qk_scale` must be one of"),
    ],
)
def test_unknown_arguments_of_the_reference_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("cbnet", {}, arguments)


def test_incomplete_checkpoint_is_refused():
    case = read_case(FOLDER / "cbnet" / "swin_fpn")
    del case["state_dict"]["neck.fpn_convs.3.conv.bias"]
    with pytest.raises(ConversionError, match=r"missing: neck.fpn_convs.3.bias"):
        convert_checkpoint("cbnet", case["state_dict"], case["arguments"])


@torch.no_grad()
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    backbone=st.sampled_from(["swin", "resnet"]),
    num_backbones=st.integers(2, 3),
    prune_stages=st.integers(0, 2),
    height=st.integers(5, 40),
    width=st.integers(5, 40),
)
def test_lead_and_assistants_give_maps_of_one_shape(backbone, num_backbones, prune_stages, height, width):
    model = composite(backbone, num_backbones=num_backbones, prune_stages=prune_stages)
    outputs = model(image(height, width))
    shapes = [x.shape for x in outputs.feature_maps]
    assert [x.shape for x in outputs.assistant_feature_maps] == shapes * (num_backbones - 1)
    assert all(x.isfinite().all() for x in outputs.feature_maps)
