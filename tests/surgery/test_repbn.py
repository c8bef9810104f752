"""PRepBN in upstream models: training starts as the model was, folding changes no output, and either form restores through Auto classes."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    BertForMaskedLM,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_ext.layers.repbn import LinearNorm, RepBatchNorm
from hf_ext.surgery import LlmDrop, apply
from hf_ext.surgery.repbn import FOLDS, RepBN, convert_norms, fuse_repbn
from tests.passport import CHECKS, Subject

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = SMALL | {
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "num_labels": 5,
}
TEXT = SMALL | {"vocab_size": 61, "pad_token_id": 0}
PIXELS = {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
IDS = {"input_ids": torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(0))}

MODELS = {
    "vit": (ViTForImageClassification, ViTConfig(**IMAGE), PIXELS),
    "vit without a head": (ViTModel, ViTConfig(**IMAGE), PIXELS),
    "deit": (DeiTForImageClassification, DeiTConfig(**IMAGE), PIXELS),
    "deit with a teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig(**IMAGE), PIXELS),
    "swin": (SwinForImageClassification, SwinConfig(**SWIN), PIXELS),
    "swin as a backbone": (SwinBackbone, SwinConfig(**SWIN, out_indices=[1, 2]), PIXELS),
    "llama": (LlamaForCausalLM, LlamaConfig(**TEXT), IDS),
    "bert": (BertForMaskedLM, BertConfig(**TEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), IDS),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
        IDS,
    ),
}
models = pytest.mark.parametrize("name", MODELS)


def original(name: str) -> nn.Module:
    model_class, config, _ = MODELS[name]
    torch.manual_seed(0)
    return model_class(config).eval()


def converted(name: str, **recipe) -> nn.Module:
    """With parameters and statistics as after some training."""
    model, generator = convert_norms(original(name), **recipe), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RepBatchNorm):
                for tensor in module.state_dict().values():
                    if tensor.is_floating_point():
                        tensor.copy_(0.3 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def output(name: str, model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    first = model(**(MODELS[name][2] | inputs))[0]
    return first[-1] if isinstance(first, tuple) else first


@models
def test_training_starts_as_the_model_was(name):
    model = convert_norms(original(name)).train()
    torch.testing.assert_close(output(name, model), output(name, original(name)), atol=1e-5, rtol=1e-5)


@models
def test_folding_changes_no_output(name):
    model = converted(name)
    expected = output(name, model)
    torch.testing.assert_close(output(name, fuse_repbn(model)), expected, atol=1e-5, rtol=1e-5)


@models
@pytest.mark.parametrize("fused", [False, True])
def test_either_form_restores(name, fused, tmp_path):
    model = converted(name)
    model = fuse_repbn(model) if fused else model
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(output(name, loaded), output(name, model))


@pytest.mark.parametrize("name", ["vit", "deit", "swin", "llama"])
@pytest.mark.parametrize("fused", [False, True])
def test_auto_classes_restore_the_converted_model(name, fused, tmp_path):
    model = converted(name)
    (fuse_repbn(model) if fused else model).save_pretrained(tmp_path)
    auto_class = AutoModelForCausalLM if name == "llama" else AutoModelForImageClassification
    assert type(auto_class.from_pretrained(tmp_path)) is type(model)
    assert AutoConfig.from_pretrained(tmp_path).model_type == f"surgical_{name}"


@pytest.mark.parametrize("name", ["vit", "deit", "deit with a teacher", "swin"])
def test_folding_leaves_an_image_classifier_without_norms(name):
    model = fuse_repbn(converted(name))
    assert not [m for m in model.modules() if isinstance(m, (nn.LayerNorm, RepBatchNorm, LinearNorm))]


def test_folding_gives_biases_to_llama_and_leaves_its_final_norm():
    model = fuse_repbn(converted("llama")).model
    assert [name for name, module in model.named_modules() if isinstance(module, RepBatchNorm)] == ["norm"]
    layer = model.layers[0]
    with_bias = {name for name, module in layer.named_modules() if getattr(module, "bias", None) is not None}
    assert with_bias == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}


def test_norms_after_the_residual_sum_stay_as_scales_and_shifts():
    model = fuse_repbn(converted("bert"))
    assert sum(isinstance(module, RepBatchNorm) for module in model.modules()) == 6
    assert not [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def test_rmsnorm_starts_from_the_map_to_zero_and_layernorm_from_batch_normalization():
    assert not convert_norms(original("llama")).model.norm.norm2.alpha.any()
    assert convert_norms(original("vit")).vit.layernorm.norm2.alpha == 1
    assert convert_norms(original("llama")).model.norm.norm2.bn.eps == 1e-6


def test_folded_model_generates_with_the_cache():
    model = fuse_repbn(converted("llama"))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(
        model.generate(**IDS, use_cache=True, **options), model.generate(**IDS, use_cache=False, **options)
    )


def test_the_given_model_stays_as_it_was():
    model = original("vit")
    before = output("vit", model)
    fuse_repbn(convert_norms(model).eval())
    assert torch.equal(output("vit", model), before) and model.config.model_type == "vit"


def test_excluded_norms_stay():
    model = convert_norms(original("vit"), exclude=["*layernorm_after", "vit.layernorm"])
    swapped = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LinearNorm)}
    assert swapped == {"layernorm_before"}


def test_what_was_excluded_can_be_converted_later():
    twice = convert_norms(converted("vit", exclude=["*layernorm_after"])).eval()
    assert sum(isinstance(module, LinearNorm) for module in twice.modules()) == 5
    expected = output("vit", twice)
    torch.testing.assert_close(output("vit", fuse_repbn(twice)), expected, atol=1e-5, rtol=1e-5)


def test_conversion_composes_with_dropped_layers(tmp_path):
    model = apply(converted("llama"), LlmDrop(mlp=[1]))
    expected = output("llama", model)
    fuse_repbn(model).save_pretrained(tmp_path)
    restored = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(output("llama", restored), expected, atol=1e-5, rtol=1e-5)


def test_base_model_cannot_be_taken_from_a_head_that_holds_the_final_norm(tmp_path):
    fuse_repbn(converted("vit")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="folded into a head that SurgicalViTModel has not"):
        AutoModel.from_pretrained(tmp_path)


def test_base_model_can_be_taken_from_an_unfolded_checkpoint(tmp_path):
    model = converted("vit")
    model.save_pretrained(tmp_path)
    expected = model.vit(**PIXELS).last_hidden_state
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(**PIXELS).last_hidden_state, expected)


def test_folded_swin_refuses_maps_that_need_padding():
    model = fuse_repbn(converted("swin"))
    with pytest.raises(ValueError, match="windows of 4 do not divide one of 10 x 10"):
        model(torch.rand(1, 3, 20, 20), interpolate_pos_encoding=True)
    assert model(torch.rand(1, 3, 32, 32), interpolate_pos_encoding=True).logits.isfinite().all()


def test_adapters_on_an_unfolded_model_leave_its_norms_alone(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(converted("llama"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).train()
    model(**IDS, labels=IDS["input_ids"]).loss.backward()
    model.save_pretrained(tmp_path)
    restored = PeftModel.from_pretrained(converted("llama"), tmp_path)
    expected = output("llama", model.eval())
    torch.testing.assert_close(output("llama", restored), expected)
    folded = fuse_repbn(restored.merge_and_unload())
    torch.testing.assert_close(output("llama", folded), expected, atol=1e-5, rtol=1e-4)


def recipes(fused: bool, fused_head: bool = False) -> list[dict]:
    return [RepBN(fused=fused, fused_head=fused_head).to_dict()]


@pytest.mark.parametrize("check", sorted(CHECKS.keys() - {"config_round_trip", "determinism", "bfloat16"}))
@pytest.mark.parametrize(("name", "fused"), [("vit", False), ("llama", True)])
def test_converted_model_passes_the_passport(name, fused, check):
    _, config, inputs = MODELS[name]
    surgical = type(converted(name))
    config = surgical.config_class(**config.to_dict() | {"model_type": f"surgical_{name}", "surgery": recipes(fused)})
    labels = {"labels": torch.tensor([0, 1])} if name == "vit" else {"labels": inputs["input_ids"], "use_cache": False}
    auto_class = "AutoModelForImageClassification" if name == "vit" else "AutoModelForCausalLM"
    CHECKS[check](Subject(surgical, config, inputs | labels, (auto_class,)))


def test_every_type_with_places_to_fold_is_upstream():
    for model_type in FOLDS:
        assert AutoConfig.for_model(f"surgical_{model_type}", surgery=[]).surgery == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: fuse_repbn(original("vit")), "was not made by `convert_norms`"),
        (lambda: fuse_repbn(converted("vit").train()), "call `model.eval\\(\\)`"),
        (
            lambda: convert_norms(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))),
            "no LayerNorm",
        ),
        (lambda: convert_norms(converted("vit")), "no LayerNorm or RMSNorm to replace"),
        (lambda: convert_norms(original("vit"), step=0), "`step` >= 1"),
    ],
)
def test_bad_requests_say_what_is_allowed(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()
