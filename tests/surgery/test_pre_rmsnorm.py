"""Pre-RMSNorm and Pre-CRMSNorm: on every family of the table outputs stay, in any form, saved and loaded, trained and composed."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from hf_ext.convert import convert_checkpoint
from hf_ext.convert.pre_rmsnorm import GPT_PRESETS, VIT_PRESETS, build
from hf_ext.layers.mean_free import CompressedNorm, ExpandingNorm, MeanFreeNorm, RecentredOutput, expand
from hf_ext.surgery import LlmDrop, Optin, PreRMSNorm, SurgicalGPT2LMHeadModel, apply, pre_rmsnorm, surgical_config
from hf_ext.surgery.pre_rmsnorm import (
    Parts,
    compress,
    convert_pre_ln,
    decompress,
    decompress_hidden_states,
    find,
    merge,
    recentre_adapters,
)
from hf_ext.surgery.streams import REFUSED, STREAMS
from tests.goldens import FOLDER, call_arguments, read_case
from tests.passport import CHECKS
from tests.surgery.bases import surgical_subject

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = SMALL | {"image_size": 16, "patch_size": 8, "num_labels": 3}
TEXT = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
OLD = {"n_embd": 16, "n_layer": 2}
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 8, "max_target_positions": 16, "pad_token_id": 0,
    "decoder_start_token_id": 1,
}  # fmt: skip
FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = {"text_config": SMALL | TEXT, "vision_config": IMAGE}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 3,
    "num_labels": 3,
}

SEGMENTING = IMAGE | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
SUMMING = TEXT | WHISPER | {"use_weighted_layer_sum": True}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


IDS = torch.randint(3, 20, (2, 7), generator=torch.Generator().manual_seed(0))
PIXELS = {"pixel_values": drawn(2, 3, 16, 16)}
WORDS = {"input_ids": IDS}

# name -> class, model type, configuration, inputs
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "gpt2", OLD | TEXT | {"n_head": 2}, WORDS),
    "gpt2 untied": ("GPT2LMHeadModel", "gpt2", OLD | TEXT | {"n_head": 2, "tie_word_embeddings": False}, WORDS),
    "gpt2 with cross-attention": (
        "GPT2LMHeadModel", "gpt2", OLD | TEXT | {"n_head": 2, "add_cross_attention": True},
        WORDS | {"encoder_hidden_states": drawn(2, 5, 16)},
    ),
    "gpt2 classifier": (
        "GPT2ForSequenceClassification", "gpt2", OLD | TEXT | {"n_head": 2, "pad_token_id": 0}, WORDS,
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM", "gpt_neo",
        TEXT | {"hidden_size": 16, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2}, WORDS,
    ),
    "gptj": ("GPTJForCausalLM", "gptj", OLD | TEXT | {"n_head": 2, "rotary_dim": 4}, WORDS),
    "codegen": ("CodeGenForCausalLM", "codegen", OLD | TEXT | {"n_head": 4, "rotary_dim": 4}, WORDS),
    "gpt_neox": ("GPTNeoXForCausalLM", "gpt_neox", SMALL | TEXT, WORDS),
    "gpt_neox, in sequence": ("GPTNeoXForCausalLM", "gpt_neox", SMALL | TEXT | {"use_parallel_residual": False}, WORDS),
    "opt": (
        "OPTForCausalLM", "opt", TEXT | FALCON | {"ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 0}, WORDS,
    ),
    "bloom": ("BloomForCausalLM", "bloom", TEXT | {"hidden_size": 16, "n_layer": 2, "n_head": 2}, WORDS),
    "falcon": ("FalconForCausalLM", "falcon", TEXT | FALCON, WORDS),
    "falcon, new decoder": ("FalconForCausalLM", "falcon", TEXT | FALCON | {"new_decoder_architecture": True}, WORDS),
    "falcon, in sequence": (
        "FalconForCausalLM", "falcon", TEXT | FALCON | {"parallel_attn": False, "alibi": True, "bias": True}, WORDS,
    ),
    "phi": ("PhiForCausalLM", "phi", SMALL | TEXT, WORDS),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2", SMALL | TEXT | {"num_key_value_heads": 1}, WORDS),
    "whisper": (
        "WhisperForConditionalGeneration", "whisper", TEXT | WHISPER,
        {"input_features": drawn(2, 80, 16), "decoder_input_ids": IDS},
    ),
    "clip": ("CLIPModel", "clip", TOWERS | {"projection_dim": 8}, WORDS | PIXELS),
    "clip text": ("CLIPTextModelWithProjection", "clip_text_model", SMALL | TEXT, WORDS),
    "clip vision": ("CLIPVisionModelWithProjection", "clip_vision_model", IMAGE, PIXELS),
    "siglip": ("SiglipModel", "siglip", TOWERS, WORDS | PIXELS),
    "siglip text": ("SiglipTextModel", "siglip_text_model", SMALL | TEXT, WORDS),
    "siglip vision": ("SiglipVisionModel", "siglip_vision_model", IMAGE, PIXELS),
    "siglip classifier": ("SiglipForImageClassification", "siglip", TOWERS | {"num_labels": 3}, PIXELS),
    "vit": ("ViTForImageClassification", "vit", IMAGE, PIXELS),
    "vit, masked": (
        "ViTForMaskedImageModeling", "vit", IMAGE | {"encoder_stride": 8},
        PIXELS | {"bool_masked_pos": torch.tensor([[True, False, False, True]] * 2)},
    ),
    "deit": ("DeiTForImageClassificationWithTeacher", "deit", IMAGE, PIXELS),
    "dinov2": ("Dinov2ForImageClassification", "dinov2", IMAGE, PIXELS),
    "dinov2, gated": ("Dinov2Model", "dinov2", IMAGE | {"use_swiglu_ffn": True}, PIXELS),
    "dinov2 backbone": ("Dinov2Backbone", "dinov2", IMAGE | {"out_indices": [1, 2]}, PIXELS),
    "beit": ("BeitForImageClassification", "beit", IMAGE, PIXELS),
    "beit with positions": (
        "BeitModel", "beit", IMAGE | {"use_absolute_position_embeddings": True, "use_mean_pooling": False}, PIXELS,
    ),
    "vit_mae": (
        "ViTMAEForPreTraining", "vit_mae",
        IMAGE | {"decoder_num_attention_heads": 2, "decoder_hidden_size": 12, "decoder_num_hidden_layers": 2,
                 "decoder_intermediate_size": 24},
        PIXELS | {"noise": drawn(2, 4)},
    ),
    "videomae": ("VideoMAEForVideoClassification", "videomae", IMAGE, {"pixel_values": drawn(2, 16, 3, 16, 16)}),
    "vivit": ("VivitForVideoClassification", "vivit", IMAGE, {"pixel_values": drawn(2, 32, 3, 16, 16)}),
    "ast": (
        "ASTForAudioClassification", "audio-spectrogram-transformer",
        SMALL | {"max_length": 64, "num_mel_bins": 16, "num_labels": 3}, {"input_values": drawn(2, 64, 16)},
    ),
    "swin": ("SwinForImageClassification", "swin", SWIN, {"pixel_values": drawn(2, 3, 32, 32)}),
    "swin backbone": ("SwinBackbone", "swin", SWIN | {"out_indices": [1, 2]}, {"pixel_values": drawn(2, 3, 32, 32)}),
}  # fmt: skip
models = pytest.mark.parametrize("name", MODELS)
FORMS = {
    "rms": {},
    "rms, folded": {"fold_affine": True},
    "rms, at run time": {"recenter_embeddings": "runtime"},
    "rms, to train": {"train_recentered": True},
    "crms": {"norm_variant": "crms"},
    "crms, folded": {"norm_variant": "crms", "fold_affine": True},
    "layernorm, folded": {"norm_variant": "layernorm", "fold_affine": True},
}
STREAM_ITSELF = ("clip", "clip vision")  # their vision tower gives the end of the stream out, without a norm


def original(name, **overrides):
    """Random weights, norms and a mean of the stream included"""
    class_name, model_type, config, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(AutoConfig.for_model(model_type, **config | overrides))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if "embed" in parameter_name or "token" in parameter_name:
                parameter.add_(0.5)
    return model.eval()


@torch.no_grad()
def outputs(model, name):
    """The tensors of an output but those that are the stream itself"""
    output = model(**MODELS[name][3])
    if name in STREAM_ITSELF:
        output = {key: value for key, value in output.items() if key.endswith(("embeds", "logits_per_image"))}
    return [x for x in tree_leaves(dict(output)) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def assert_same(ours, theirs, atol=2e-5):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


@models
@pytest.mark.parametrize("form", FORMS)
def test_conversion_changes_no_output(name, form):
    model = original(name)
    if "swin" in name and "crms" in form:
        with pytest.raises(ValueError, match="norm_variant must be 'rms'"):
            convert_pre_ln(model, **FORMS[form])
        return
    converted = convert_pre_ln(model, **FORMS[form])
    assert type(converted).__name__ == f"Surgical{type(model).__name__}"
    assert_same(outputs(converted, name), outputs(model, name))


@models
@pytest.mark.parametrize("form", ["rms", "crms, folded"])
def test_converted_model_restores(name, form, tmp_path):
    if "swin" in name and "crms" in form:
        form = "rms, folded"
    converted = convert_pre_ln(original(name), **FORMS[form])
    converted.save_pretrained(tmp_path)
    loaded, info = type(converted).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for ours, theirs in zip(outputs(loaded.eval(), name), outputs(converted, name)):
        assert torch.equal(ours, theirs)


def test_every_name_of_the_table_is_found_in_some_model():
    named, found = set(), set()
    for streams in STREAMS.values():
        for stream in streams:
            named |= {name for norm, readers in stream.norms for name in (norm, *readers)}
            named |= {
                *stream.outputs,
                *stream.sources,
                *stream.final,
                *(name for pair in stream.scales for name in pair),
            }
            named |= {stream.start} if stream.start else set()
    for model in map(original, MODELS):
        for stream in STREAMS[model.config.model_type]:
            if (parts := Parts(model, stream)).root is not None:
                places = (*parts.layers, parts.root, model.base_model, model)
                found |= {name for name in named for place in places if find(place, name) is not None}
    assert named - found == {"layernorm.norm"}  # of `prenorm_reference`; its cases are goldens


@pytest.mark.parametrize("case", ["hf_gpt2", "hf_vit", "vit_tiny"])
@pytest.mark.parametrize("form", FORMS)
def test_golden_cases_hold_in_every_form_after_saving(case, form, tmp_path):
    case = read_case(FOLDER / "pre_rmsnorm" / case)
    converted = convert_pre_ln(convert_checkpoint("pre_rmsnorm", case["state_dict"], case["arguments"]), **FORMS[form])
    converted.save_pretrained(tmp_path)
    logits = type(converted).from_pretrained(tmp_path).eval()(**call_arguments(case)).logits
    torch.testing.assert_close(logits, case["outputs"]["logits"], atol=case["atol"], rtol=case["rtol"])


def test_no_layer_norm_is_left():
    kinds = {
        form: {type(m) for m in convert_pre_ln(original("vit"), **FORMS[form]).modules() if "Norm" in type(m).__name__}
        for form in ("rms", "crms", "crms, folded")
    }
    assert kinds == {"rms": {MeanFreeNorm}, "crms": {ExpandingNorm}, "crms, folded": {CompressedNorm, ExpandingNorm}}


def test_folded_norms_have_no_parameters_and_compressed_streams_are_narrower():
    model = original("vit")
    sizes = {
        form: convert_pre_ln(model, **FORMS[form]).num_parameters() for form in ("rms", "rms, folded", "crms, folded")
    }
    layers, width, inner = 2, 16, 24
    assert sizes["rms"] == model.num_parameters()
    assert sizes["rms"] - sizes["rms, folded"] == 4 * layers * width
    per_layer = 3 * width + inner + (width + 1) + (inner + 1)  # a column of each reader, a row of each writer
    tokens, patch = 1 + 5, 3 * 8 * 8 + 1
    assert sizes["rms, folded"] - sizes["crms, folded"] == layers * per_layer + tokens + patch


@pytest.mark.parametrize("form", ["rms", "crms, folded"])
def test_the_stream_has_no_mean(form):
    model = original("vit")
    states = convert_pre_ln(model, **FORMS[form])(**PIXELS, output_hidden_states=True).hidden_states[:-1]
    states = decompress_hidden_states(states) if "crms" in form else states
    expected = model(**PIXELS, output_hidden_states=True).hidden_states[:-1]
    for ours, theirs in zip(states, expected):
        torch.testing.assert_close(ours, theirs - theirs.mean(-1, keepdim=True), atol=2e-5, rtol=1e-4)


def test_decompressed_model_is_the_one_with_rmsnorm(tmp_path):
    for name in ("vit", "gpt2", "gpt2 untied", "opt", "whisper", "vit_mae"):
        model = original(name)
        for fold_affine in (False, True):
            narrow = convert_pre_ln(model, "crms", fold_affine)
            wide = decompress(narrow)
            assert_same(outputs(wide, name), outputs(model, name))
            assert_same(outputs(narrow, name), outputs(model, name))
            wide.save_pretrained(tmp_path)
            assert_same(outputs(type(wide).from_pretrained(tmp_path).eval(), name), outputs(wide, name), atol=0)


def test_model_type_can_be_kept(tmp_path):
    for name in ("gpt2", "vit", "videomae"):
        model = original(name)
        plain = convert_pre_ln(model, keep_model_type=True)
        assert type(plain) is type(model) and plain.config.model_type == model.config.model_type
        plain.save_pretrained(tmp_path)
        assert_same(outputs(type(model).from_pretrained(tmp_path).eval(), name), outputs(model, name))
        converted = convert_pre_ln(type(model).from_pretrained(tmp_path).eval())
        assert any(isinstance(module, MeanFreeNorm) for module in converted.modules())
        assert_same(outputs(converted, name), outputs(model, name))


def test_a_plain_checkpoint_with_a_kept_model_type_loads_with_rmsnorm_and_in_8_bit(tmp_path):
    model = original("gpt2")
    convert_pre_ln(model, keep_model_type=True).save_pretrained(tmp_path)
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    for quantized in ({}, options):
        loaded = SurgicalGPT2LMHeadModel.from_pretrained(
            tmp_path, surgery=[{"name": "pre_rmsnorm"}], **quantized
        ).eval()
        assert isinstance(loaded.transformer.ln_f, MeanFreeNorm)
        assert_same([loaded(IDS).logits.float()], [model(IDS).logits], atol=0.1 if quantized else 2e-5)


def test_the_given_model_stays_as_it_was_and_shares_what_does_not_change():
    model = original("gpt2")
    before = outputs(model, "gpt2")
    converted = convert_pre_ln(model, fold_affine=True)
    assert_same(outputs(model, "gpt2"), before, atol=0)
    assert converted.transformer.wte.weight is model.transformer.wte.weight
    assert converted.lm_head.weight is converted.transformer.wte.weight


def test_converting_in_two_steps_equals_one():
    model = original("vit")
    twice = convert_pre_ln(convert_pre_ln(model), "crms", fold_affine=True)
    assert_same(outputs(twice, "vit"), outputs(model, "vit"))
    assert [entry["norm_variant"] for entry in twice.config.surgery] == ["rms", "crms"]


def test_generation_stays_cached_or_not_and_padded_or_not():
    model = original("gpt2")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(IDS, **options)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    for form in ("rms", "crms, folded"):
        converted = convert_pre_ln(model, **FORMS[form])
        assert torch.equal(converted.generate(IDS, **options), expected)
        assert torch.equal(converted.generate(IDS, use_cache=False, **options), expected)
        assert torch.equal(converted.generate(padded, attention_mask=mask, **options)[:, 10:], expected[:, 7:])


def test_embeddings_that_a_user_brings_are_recentred_where_tables_are_tied():
    model = original("gpt2")
    embeddings = drawn(2, 7, 16) + 3
    expected = model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(convert_pre_ln(model)(inputs_embeds=embeddings).logits, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_low_precision_loses_less_of_a_stream_with_a_large_mean():
    model = original("vit")
    model.vit.embeddings.position_embeddings.add_(30)
    expected, pixels = model(**PIXELS).logits, PIXELS["pixel_values"].bfloat16()
    converted = convert_pre_ln(model)
    ours, theirs = ((m.bfloat16()(pixels).logits - expected).norm() for m in (converted, model))
    assert ours < 0.5 * theirs


def trained(model, steps=3, **inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**WORDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["gpt2", "opt", "gptj"])
def test_training_keeps_the_equivalence(name):
    dropouts = {
        field: 0.0
        for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout")
        if hasattr(original(name).config, field)
    }
    model = original(name, **dropouts)
    converted = trained(convert_pre_ln(original(name, **dropouts), train_recentered=True))
    assert_same(outputs(converted, name), outputs(trained(model), name), atol=1e-4)


def test_gradients_of_what_writes_to_the_stream_have_no_mean():
    model = convert_pre_ln(original("gpt2"), train_recentered=True)
    model(**WORDS, labels=IDS).loss.backward()
    gradient = model.transformer.h[0].mlp.c_proj.weight.grad
    assert gradient.abs().max() > 1e-5 and gradient.mean(1).abs().max() < 1e-7


def test_training_with_dropout_leaves_a_model_that_is_its_own_pre_ln_model():
    model = trained(convert_pre_ln(original("gpt2"), train_recentered=True))
    plain = GPT2LMHeadModel(GPT2Config(**MODELS["gpt2"][2])).eval()
    plain.load_state_dict(model.state_dict())
    assert_same(outputs(model, "gpt2"), outputs(plain, "gpt2"))


def test_merging_ends_training_and_changes_no_output(tmp_path):
    model = trained(convert_pre_ln(original("gpt2 untied"), train_recentered=True))
    expected = outputs(model, "gpt2 untied")
    assert_same(outputs(merge(model), "gpt2 untied"), expected)
    assert not any(isinstance(output, RecentredOutput) for output in Parts(model, STREAMS["gpt2"][0]).outputs())
    model.save_pretrained(tmp_path)
    assert_same(outputs(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), "gpt2 untied"), expected)


def test_lora_of_the_original_fits_the_converted_model_once_recentred(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    adapted = get_peft_model(original("gptj"), LoraConfig(target_modules=["q_proj", "out_proj", "fc_out"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.1, 0.3)
    adapted.save_pretrained(tmp_path)
    expected = adapted.eval()(**WORDS).logits
    model = PeftModel.from_pretrained(convert_pre_ln(original("gptj")), tmp_path).eval()
    assert (model(**WORDS).logits - expected).abs().max() > 1e-3
    torch.testing.assert_close(recentre_adapters(model)(**WORDS).logits, expected, atol=2e-5, rtol=1e-4)


def test_8_bit_lora_and_generate_together(tmp_path):
    from peft import LoraConfig, get_peft_model

    apply(original("gpt2"), LlmDrop([1]), PreRMSNorm(fold_affine=True)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    with pytest.raises(ValueError, match="Quantized weights"):
        convert_pre_ln(model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.generate(input_ids=IDS, max_new_tokens=3).shape == (2, 10)
    with pytest.raises(ValueError, match="adapters"):
        convert_pre_ln(model.get_base_model())


@pytest.mark.parametrize("form", ["rms", "crms, folded"])
@pytest.mark.parametrize("name", ["gpt2", "vit"])
@pytest.mark.parametrize(
    "other",
    [LlmDrop([1], [0]), Optin(heads=["0", "0,1"], neurons=["0-9", "3-5"]), Optin(heads=["0-1", ""], neurons=["", "2"])],
)
def test_order_does_not_matter_beside_what_removes_modules(name, form, other, tmp_path):
    model, recipe = original(name), PreRMSNorm(**FORMS[form])
    expected = outputs(apply(model, other), name)
    for changed in (apply(model, other, recipe), apply(model, recipe, other)):
        assert_same(outputs(changed, name), expected)
        changed.save_pretrained(tmp_path)
        assert_same(outputs(type(changed).from_pretrained(tmp_path).eval(), name), expected)


def test_sparse_fine_tuning_comes_after_the_conversion_and_batch_norm_instead_of_it():
    from hf_ext.surgery.repbn import convert_norms
    from hf_ext.surgery.spt import SPT

    model = original("gpt2")
    assert apply(model, PreRMSNorm(), SPT(d_codeword=4)).generate(IDS, max_new_tokens=2).shape == (2, 9)
    with pytest.raises(ValueError, match="RoutedFeedForward"):
        apply(model, SPT(d_codeword=4), PreRMSNorm())
    with pytest.raises(ValueError, match="is a LayerNorm"):
        convert_pre_ln(convert_norms(original("vit")))


def test_models_with_rmsnorm_are_returned_as_they_are_with_a_warning(monkeypatch):
    messages = []
    monkeypatch.setattr(pre_rmsnorm.logger, "warning", messages.append)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | TEXT))
    assert convert_pre_ln(model) is model and compress(model) is model
    assert torch.equal(apply(model, PreRMSNorm())(IDS).logits, model(IDS).logits)
    assert len(messages) == 3 and all("RMSNorm already" in message for message in messages)


def built(class_name, model_type, **config):
    return getattr(transformers, class_name)(AutoConfig.for_model(model_type, **config))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: built("BertModel", "bert", **SMALL | {"vocab_size": 20}), "post-norm"),
        (lambda: built("Gemma2Model", "gemma2", **SMALL | TEXT | {"num_key_value_heads": 2}), "follow each branch"),
        (lambda: built("Swinv2Model", "swinv2", **SWIN | {"window_size": 4}), "follow each branch"),
        (lambda: original("opt", do_layer_norm_before=False), "post-norm"),
        (lambda: original("opt", word_embed_proj_dim=8), r"several widths, \[8, 16\]"),
        (lambda: built("VideoMAEForPreTraining", "videomae", **IMAGE | {"use_mean_pooling": True}), "without a norm"),
        (lambda: original("opt", _remove_final_layer_norm=True), "without a norm"),
        (lambda: original("bloom", apply_residual_connection_post_layernorm=True), "start behind its norms"),
        (lambda: original("dinov2 backbone", apply_layernorm=False), "apply_layernorm=False"),
        (lambda: original("swin", depths=[2], num_heads=[2]), "nothing linear writes"),
        (lambda: built("CLIPForImageClassification", "clip", **TOWERS), "reads hidden states without a norm"),
        (lambda: built("BeitForSemanticSegmentation", "beit", **SEGMENTING), "without a norm"),
        (lambda: built("WhisperForAudioClassification", "whisper", **SUMMING), "sums hidden states"),
        (lambda: built("ResNetModel", "resnet", embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1]), "it is for gpt2, gpt_neo"),
        (lambda: convert_pre_ln(original("vit"), "crms"), "compressed already"),
        (lambda: convert_pre_ln(original("gpt2"), train_recentered=True), "`merge` it first"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(make, reason):
    with pytest.raises(ValueError, match=reason):
        convert_pre_ln(make())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: PreRMSNorm("scale"), "norm_variant='scale' is not one of rms, crms, layernorm"),
        (lambda: PreRMSNorm(recenter_embeddings="never"), "recenter_embeddings='never' is not one of auto"),
        (lambda: PreRMSNorm(fold_affine="yes"), "fold_affine='yes' must be true or false"),
        (lambda: PreRMSNorm("crms", train_recentered=True), "goes with norm_variant='rms'"),
        (lambda: convert_pre_ln(original("gpt2"), recenter_embeddings="weights"), "tied to the embeddings"),
        (lambda: convert_pre_ln(original("gpt2"), "crms", keep_model_type=True), "keep_model_type=True is for"),
        (lambda: convert_pre_ln(original("dinov2"), keep_model_type=True), "would be folded away"),
        (lambda: merge(convert_pre_ln(original("vit"))), "was not made with train_recentered"),
        (lambda: decompress(convert_pre_ln(original("vit"))), "was not made with norm_variant='crms'"),
        (lambda: convert_checkpoint("pre_rmsnorm", {"a": torch.ones(1)}, {}), "neither the reference's"),
        (lambda: build({"image_size": 8, "patch_size": 4, "num_classes": 2, "variant": "Nano"}), "variant='Nano' is not one of Tiny"),
        (lambda: build({"vocab_size": 8, "max_seq_length": 4, "method": "post-ln"}), "method='post-ln' is not one of pre-ln"),
        (lambda: build({"vocab_size": 8, "max_seq_length": 4, "pool": "cls"}), r"unknown arguments \['pool'\]"),
        (lambda: build({"vocab_size": 8, "max_seq_length": 4, "dim": 9, "depth": 1, "heads": 2}), "no multiple of heads"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_allowed(request_, message):
    with pytest.raises(ValueError, match=message):
        request_()


def test_post_norm_families_are_not_in_the_table():
    assert not set(REFUSED) & set(STREAMS)


PARAMETERS = {
    "Tiny": 5_707_624, "Small": 22_031_080, "Base": 86_528_488, "Large": 304_225_256, "Huge": 632_031_720,
}  # fmt: skip
GPT_PARAMETERS = {"Small": 163_835_473, "Medium": 407_284_817, "Large": 837_394_513}


@pytest.mark.parametrize("variant", VIT_PRESETS)
def test_vit_presets_have_the_size_of_the_reference_and_a_position_for_the_class_token(variant):
    with torch.device("meta"):
        model = build({"image_size": 224, "patch_size": 16, "num_classes": 1000, "variant": variant})
    assert len(model.vit.layers) == VIT_PRESETS[variant][2]
    if variant in PARAMETERS:
        assert model.num_parameters() - model.config.hidden_size == PARAMETERS[variant]


@pytest.mark.parametrize("variant", GPT_PRESETS)
def test_gpt_presets_have_the_size_of_the_reference(variant):
    with torch.device("meta"):
        model = build({"vocab_size": 50257, "max_seq_length": 2048, "variant": variant})
    _, dim, heads, head_dim = GPT_PRESETS[variant]
    assert model.transformer.h[-1].attn.c_attn.weight.shape == (dim, 3 * heads * head_dim)
    if variant in GPT_PARAMETERS:
        assert model.num_parameters() == GPT_PARAMETERS[variant]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 2),
    st.integers(1, 8),
    st.sampled_from(sorted(FORMS)),
    st.booleans(),
)
def test_any_gpt2_keeps_its_outputs(layers, head_dim, heads, length, form, tied):
    torch.manual_seed(layers)
    config = GPT2Config(
        **TEXT, n_layer=layers, n_head=heads, n_embd=heads * head_dim, n_positions=8, tie_word_embeddings=tied
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        ids = IDS[:, :length]
        expected = model(ids).logits
        torch.testing.assert_close(convert_pre_ln(model, **FORMS[form])(ids).logits, expected, atol=1e-9, rtol=1e-7)


def test_expanding_undoes_compression():
    x = drawn(2, 3, 5)
    x = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(expand(x[..., :-1]), x)
    assert isinstance(decompress_hidden_states((x, x)), tuple)


def test_a_new_vit_may_be_built_converted():
    config = surgical_config("vit")(
        **IMAGE, surgery=[{"name": "pre_rmsnorm", "norm_variant": "crms", "fold_affine": True}]
    )
    model = transformers.AutoModelForImageClassification.from_config(config)
    assert model(**PIXELS).logits.shape == (2, 3)
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())


OTHER_FORMS = [("gpt2", "crms, folded"), ("gpt2", "rms, to train"), ("vit", "rms, to train")]
OTHER_CHECKS = ["gradients", "gradient_checkpointing", "export", "onnx", "compile", "disk_offload"]


@pytest.mark.parametrize(
    ("base", "form", "check"),
    # what writes to the stream is not quantized before `merge`
    [(*of, check) for of in OTHER_FORMS for check in OTHER_CHECKS] + [("gpt2", "crms, folded", "load_in_8bit")],
)
def test_other_forms_pass_the_passport_too(base, form, check):
    CHECKS[check](surgical_subject(base, [{"name": "pre_rmsnorm"} | FORMS[form]]))
