"""BCT on models of Transformers: converted while loading, saved, restored, and combined with what people use."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    Gemma2Config,
    GPT2Config,
    OPTConfig,
    RobertaConfig,
    SwinConfig,
    T5Config,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.quantizers.auto import AutoQuantizationConfig

import hf_ext.surgery.bct
from hf_ext.ops import blockwise_integer as blockwise
from hf_ext.quantizers import BCTConfig, quantize_model
from hf_ext.quantizers.bct import BCTEmbedding, BCTLinear
from hf_ext.surgery import LlmDrop, apply
from tests.passport import (
    Subject,
    assert_same,
    check_compile,
    check_determinism,
    check_onnx,
    relative_error,
    subjects,
)
from tests.surgery.bases import BASES, build, inputs_of
from tests.tiny import images, tokens

WIDTHS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# more models: Auto class, configuration, inputs
MORE = {
    "roberta": ("AutoModelForSequenceClassification", RobertaConfig(**WIDTHS, pad_token_id=1), "text"),
    "opt": (
        "AutoModelForCausalLM",
        OPTConfig(
            vocab_size=64, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, ffn_dim=48,
            num_attention_heads=4, max_position_embeddings=64, dropout=0.0,
        ),
        "text",
    ),
    "gemma2": (
        "AutoModelForCausalLM",
        Gemma2Config(**WIDTHS, num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "text",
    ),
    "swin": (
        "AutoModelForImageClassification",
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        "images",
    ),
    "t5": (
        "AutoModelForSeq2SeqLM",
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
        "pairs",
    ),
}  # fmt: skip
SMALL = BCTConfig(block_size=16)
# Products of another shape add up in another order, and a sum that lies on the border of two integers may fall to either side
BORDERS = 0.03


def inputs(kind):
    ids = tokens(64)
    return {
        "text": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "images": {"pixel_values": images(32)},
        "pairs": {"input_ids": ids, "labels": ids},
    }[kind]


def subject(name):
    """The model's class, configuration, inputs without labels, and the Auto class that restores it"""
    import transformers

    auto, config, given = (*BASES[name], inputs_of(name)) if name in BASES else (*MORE[name][:2], inputs(MORE[name][2]))
    model_class = getattr(transformers, auto)._model_mapping[type(config)]
    given = given if name == "t5" else {key: value for key, value in given.items() if key != "labels"}
    return Subject(model_class, config, given), getattr(transformers, auto)


class Converted(Subject):
    """A subject of the passport that is built in integers"""

    def build(self, seed=0):
        return quantize_model(super().build(seed), SMALL)


MODELS = [*BASES, *MORE]


@pytest.fixture(params=MODELS)
def case(request, tmp_path):
    """A saved model in floats: (model, Auto class, inputs, folder)"""
    described, auto = subject(request.param)
    model = described.build()
    model.save_pretrained(tmp_path / "dense")
    return model, auto, described.inputs, tmp_path / "dense"


def linears(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


@torch.no_grad()
def test_loading_saving_and_loading_again_keeps_every_logit(case, tmp_path):
    model, auto, given, folder = case
    converted, info = auto.from_pretrained(folder, quantization_config=BCTConfig(), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert converted.config._attn_implementation == "bct_eager"
    converted.save_pretrained(tmp_path / "small")
    loaded, info = auto.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded) is type(model) and loaded.config.quantization_config.weight_bits == 4
    assert torch.equal(loaded(**given).logits, converted(**given).logits)
    loaded.save_pretrained(tmp_path / "again")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "again"))
    assert first == second


@torch.no_grad()
def test_eight_bits_stay_near_the_model_in_floats(case):
    model, auto, given, folder = case
    converted = auto.from_pretrained(folder, quantization_config=BCTConfig(weight_bits=8, block_size=32))
    assert relative_error(converted(**given).logits, model(**given).logits) < 0.12
    assert len(linears(converted, BCTLinear)) > 5 * len(linears(converted, nn.Linear))


@torch.no_grad()
def test_a_model_in_memory_becomes_what_loading_makes_of_it(case):
    model, auto, given, folder = case
    before = model(**given).logits
    config = BCTConfig(block_size=16, modules_to_not_convert=[])
    converted = quantize_model(model, config)
    assert torch.equal(
        converted(**given).logits, auto.from_pretrained(folder, quantization_config=config)(**given).logits
    )
    assert torch.equal(model(**given).logits, before)


@torch.no_grad()
def test_dequantizing_gives_a_plain_model_with_the_rounded_weights(case, tmp_path):
    model, _, given, _ = case
    plain = quantize_model(model, BCTConfig(block_size=16, activation_bits=None))
    expected = plain(**given).logits
    plain = plain.dequantize()
    assert not plain.is_quantized and not linears(plain, BCTLinear)
    assert {type(module) for module in plain.modules()} == {type(module) for module in model.modules()}
    torch.testing.assert_close(plain(**given).logits, expected, atol=2e-5, rtol=1e-4)
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert torch.equal(type(model).from_pretrained(tmp_path / "plain")(**given).logits, plain(**given).logits)


@torch.no_grad()
@pytest.mark.parametrize("base", BASES)
def test_a_batch_is_its_items(base):
    described, _ = subject(base)
    converted = quantize_model(described.build(), SMALL)
    whole = converted(**described.inputs).logits
    single = torch.cat([converted(**described.sample(i)).logits for i in range(2)])
    assert relative_error(single, whole) < BORDERS


@pytest.mark.parametrize(
    ("base", "check"),
    [
        *((base, check_determinism) for base in BASES),
        *((base, check_compile) for base in ("llama", "bert")),
    ],
)
def test_converted_model_passes_the_passport(base, check):
    described, _ = subject(base)
    check(Converted(described.model_class, described.config, described.inputs))


def test_converted_model_becomes_an_exported_program_and_onnx():
    described, _ = subject("bert")
    config = copy.deepcopy(described.config)
    config.num_hidden_layers = 1
    check_onnx(Converted(described.model_class, config, described.inputs))


GENERATION = {
    "max_new_tokens": 16,
    "do_sample": False,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_generation_with_a_cache_sees_what_one_pass_sees(base, cache):
    converted = quantize_model(build(base), SMALL)
    ids = tokens(64)[:, :5]
    found = converted.generate(ids, cache_implementation=cache, disable_compile=True, **GENERATION)
    expected = converted(found.sequences[:, :-1]).logits[:, 4:]
    assert relative_error(torch.stack(found.logits, 1), expected) < BORDERS


@torch.no_grad()
def test_an_encoder_and_a_decoder_generate_with_a_cache():
    described, _ = subject("t5")
    converted = quantize_model(described.build(), SMALL)
    found = converted.generate(tokens(64), **GENERATION)
    expected = converted(tokens(64), decoder_input_ids=found.sequences[:, :-1]).logits
    assert relative_error(torch.stack(found.logits, 1), expected) < BORDERS


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_in_a_causal_model():
    converted = quantize_model(build("llama"), SMALL)
    ids = tokens(64)
    padded = torch.cat((ids, torch.zeros_like(ids)), 1)
    mask = torch.cat((torch.ones_like(ids), torch.zeros_like(ids)), 1)
    found = converted(padded, attention_mask=mask).logits[:, : ids.shape[1]]
    assert relative_error(found, converted(ids).logits) < BORDERS


@torch.no_grad()
def test_device_map_with_disk_gives_the_same(tmp_path):
    converted = quantize_model(build("llama"), SMALL)
    converted.save_pretrained(tmp_path / "small")
    places = {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    load = {"device_map": places, "offload_folder": tmp_path / "offload"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", **load)
    assert torch.equal(loaded(tokens(64)).logits, converted(tokens(64)).logits)
    with pytest.raises(ValueError, match="offloaded"):
        loaded.save_pretrained(tmp_path / "again")


def test_converting_and_offloading_at_once_is_refused(tmp_path):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="save the converted model"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=SMALL, device_map={"": "disk"})


@torch.no_grad()
@pytest.mark.parametrize(
    "recipes",
    [
        [{"name": "llm_drop", "attention": [1, 2], "mlp": [3]}],
        [{"name": "llm_drop", "attention": [1]}, {"name": "llm_drop", "attention": [2], "mlp": [1]}],
    ],
)
@pytest.mark.parametrize("base", ["gpt2", "llama", "vit"])
def test_a_model_changed_by_recipes_is_converted_and_restored(base, recipes, tmp_path):
    described, auto = subject(base)
    changed = described.build()
    for fields in recipes:
        changed = apply(changed, LlmDrop(**{key: value for key, value in fields.items() if key != "name"}))
    changed.save_pretrained(tmp_path / "changed")
    converted = auto.from_pretrained(tmp_path / "changed", quantization_config=SMALL)
    converted.save_pretrained(tmp_path / "small")
    loaded = auto.from_pretrained(tmp_path / "small")
    assert type(loaded) is type(changed) and loaded.config.surgery == changed.config.surgery
    assert torch.equal(loaded(**described.inputs).logits, converted(**described.inputs).logits)


@torch.no_grad()
def test_compress_is_the_quantizer(tmp_path):
    model = build("bert")
    given = {key: value for key, value in inputs_of("bert").items() if key != "labels"}
    ours = hf_ext.surgery.bct.compress(
        model, None, weight_bits=8, block_size=16, modules_to_not_convert="query+classifier"
    )
    assert not isinstance(ours.bert.encoder.layer[0].attention.self.query, BCTLinear)
    config = BCTConfig(weight_bits=8, block_size=16, modules_to_not_convert=["query", "classifier"])
    assert torch.equal(ours(**given).logits, quantize_model(model, config)(**given).logits)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bits'"):
        hf_ext.surgery.bct.compress(model, None, bits=4)


def test_lora_is_refused_on_integers_and_trains_on_what_dequantize_gives():
    from peft import LoraConfig, get_peft_model

    converted = quantize_model(build("llama"), SMALL)
    adapter = LoraConfig(target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"BCTLinear.*not supported"):
        get_peft_model(converted, adapter)
    trained = get_peft_model(converted.dequantize(), adapter)
    trained(tokens(64), labels=tokens(64)).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in trained.parameters())


def test_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(quantize_model(build("llama"), SMALL), TrainingArguments(str(tmp_path), report_to="none"))


def test_a_gradient_through_a_converted_model_is_refused():
    converted = quantize_model(build("vit"), SMALL)
    with pytest.raises(ValueError, match="dequantize"):
        converted(**inputs_of("vit")).loss.backward()


def test_a_second_number_format_is_refused(tmp_path):
    converted = quantize_model(build("bert"), SMALL)
    with pytest.raises(ValueError, match="quantized already, by 'bct'"):
        quantize_model(converted, SMALL)
    converted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BitsAndBytesConfig"):
        AutoModelForSequenceClassification.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )


def test_a_layer_that_gets_the_type_of_its_weight_says_so():
    layer = quantize_model(build("bert"), SMALL).bert.pooler.dense
    with pytest.raises(ValueError, match="modules_to_not_convert"):
        layer(torch.ones(1, 32).to(layer.weight.dtype))


@torch.no_grad()
@pytest.mark.parametrize("slug", ["crossvit", "gla", "itransformer"])
def test_models_of_this_project_are_converted_too(slug, tmp_path):
    *_, described = subjects(slug)
    model, given = described.build(), described.without_labels
    converted = quantize_model(model, BCTConfig(weight_bits=8, block_size=16))
    assert linears(converted, BCTLinear) and relative_error(converted(**given), model(**given)) < 0.1
    converted.save_pretrained(tmp_path)
    assert_same(described.model_class.from_pretrained(tmp_path)(**given), converted(**given), atol=0, rtol=0)


def test_weights_that_are_not_finite_are_not_converted():
    model = build("bert")
    model.bert.pooler.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        quantize_model(model, SMALL)


def test_what_the_file_holds(tmp_path):
    quantize_model(build("bert"), BCTConfig(block_size=16)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "bct"
    found = {name: (x.dtype, tuple(x.shape)) for name, x in load_file(tmp_path / "model.safetensors").items()}
    layer = "bert.encoder.layer.0.intermediate.dense"
    assert found[f"{layer}.weight_packed"] == (torch.uint8, (48, 16))
    assert found[f"{layer}.weight_shift"] == (torch.int8, (3, 2))
    assert found[f"{layer}.bias_q"] == (torch.int8, (48,))
    assert found[f"{layer}.bias_shift"] == (torch.int8, (3,))
    assert found["bert.embeddings.LayerNorm.weight_q"] == (torch.int8, (32,))
    assert {name for name, (dtype, _) in found.items() if dtype == torch.float32} == {
        "classifier.weight",
        "classifier.bias",
    }


@torch.no_grad()
def test_bert_base_in_the_setting_of_the_paper_has_the_size_of_the_paper():
    """109,483,778 parameters: 4 bits an element of a matrix, 8 an element of a vector, 8 a block; two labels stay in floats"""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    assert model.num_parameters() == 109_483_778
    sizes = {16: 7.928, 32: 7.975, 64: 7.987, 128: 7.990}
    for block, ratio in sizes.items():
        bits = 0
        for parameter in model.parameters():
            *rows, columns = parameter.shape
            blocks = -(-columns // block) * (-(-rows[0] // block) if rows else 1)
            bits += parameter.numel() * (4 if rows else 8) + 8 * blocks
        assert 32 * model.num_parameters() / bits == pytest.approx(ratio, abs=5e-4)


@torch.no_grad()
def test_loading_integers_makes_no_float_matrix(tmp_path, monkeypatch):
    quantize_model(build("bert"), SMALL).save_pretrained(tmp_path)
    monkeypatch.setattr(BCTLinear, "floats", None)
    monkeypatch.setattr(BCTEmbedding, "floats", None)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    floats = [name for name, p in loaded.named_parameters() if p.is_floating_point() and p.ndim > 1]
    assert floats == ["classifier.weight"]
    packed = loaded.bert.embeddings.word_embeddings.weight
    assert packed.dtype == torch.int8 and packed.shape == (64, 16)


@torch.no_grad()
def test_what_a_checkpoint_lacks_is_initialized_and_then_converted(tmp_path):
    config = BertConfig(**WIDTHS)
    MODEL_FOR_MASKED_LM_MAPPING[BertConfig](config).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, info = AutoModel.from_pretrained(tmp_path, quantization_config=SMALL, output_loading_info=True)
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= info["missing_keys"]
    assert 0.01 < model.pooler.dense.floats().std() < 0.04
    assert not model.pooler.dense.bias.any()


@torch.no_grad()
def test_a_tied_table_stays_in_floats_with_its_head_and_is_shared_without(tmp_path):
    fields = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = AutoModelForCausalLM.from_config(GPT2Config(**fields, bos_token_id=1, eos_token_id=2)).eval()
    kept = quantize_model(model, SMALL)
    assert kept.lm_head.weight is kept.transformer.wte.weight and kept.lm_head.weight.is_floating_point()
    converted = quantize_model(model, BCTConfig(block_size=16, modules_to_not_convert=[]))
    converted.save_pretrained(tmp_path)
    for each in (converted, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(each.lm_head, BCTLinear) and isinstance(each.transformer.wte, BCTEmbedding)
        assert each.lm_head.weight is each.transformer.wte.weight
        assert each.lm_head.weight_shift is each.transformer.wte.weight_shift
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("lm_head")]


@torch.no_grad()
def test_the_bias_of_a_tied_head_stays_with_its_twin(tmp_path):
    config = BertConfig(**WIDTHS)
    model = AutoModelForMaskedLM.from_config(config).eval()
    model.cls.predictions.bias.data.normal_()
    converted = quantize_model(model, SMALL)
    assert torch.equal(converted.cls.predictions.decoder.bias, model.cls.predictions.bias)
    converted.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens(64)).logits, converted(tokens(64)).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype, tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "dense")
    config = BCTConfig(weight_bits=8)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config, dtype=dtype)
    half.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    logits = loaded(tokens(64)).logits
    assert logits.dtype == dtype and torch.equal(logits, half(tokens(64)).logits)
    assert relative_error(logits, model(tokens(64)).logits) < 0.15


@torch.no_grad()
def test_each_switch_leaves_its_group_in_floats():
    model = build("bert")
    whole = quantize_model(model, SMALL)
    assert isinstance(whole.bert.embeddings.word_embeddings, BCTEmbedding)
    assert not isinstance(
        quantize_model(model, BCTConfig(quantize_embeddings=False)).bert.embeddings.word_embeddings, BCTEmbedding
    )
    no_norms = quantize_model(model, BCTConfig(quantize_norms=False))
    assert torch.equal(no_norms.bert.embeddings.LayerNorm.weight, model.bert.embeddings.LayerNorm.weight)
    activation = type(model.bert.encoder.layer[0].intermediate.intermediate_act_fn)
    without = quantize_model(model, BCTConfig(quantize_activations=False))
    assert type(without.bert.encoder.layer[0].intermediate.intermediate_act_fn) is activation
    assert quantize_model(model, BCTConfig(quantize_attention=False)).config._attn_implementation != "bct_eager"
    assert quantize_model(model, BCTConfig(activation_bits=None)).config._attn_implementation != "bct_eager"


def test_an_attention_that_was_asked_for_is_kept(tmp_path):
    build("bert").save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    assert load(tmp_path, quantization_config=SMALL, attn_implementation="sdpa").config._attn_implementation == "sdpa"


def test_an_embedding_that_reads_its_own_table_stays_in_floats():
    described, _ = subject("gemma2")  # its tokens are scaled in the type of the table
    config = BCTConfig(block_size=16, modules_to_not_convert=[])
    converted = quantize_model(described.build(), config)
    assert converted.model.embed_tokens.weight.is_floating_point()
    assert not isinstance(converted.lm_head, BCTLinear)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    weight_bits=st.integers(2, 8),
    vector_bits=st.integers(2, 8),
    activation_bits=st.one_of(st.none(), st.integers(2, 8)),
    block_size=st.integers(1, 80),
    pack=st.booleans(),
)
def test_every_setting_is_restored(tmp_path_factory, weight_bits, vector_bits, activation_bits, block_size, pack):
    bits = {"weight_bits": weight_bits, "vector_bits": vector_bits, "activation_bits": activation_bits}
    config = BCTConfig(**bits, block_size=block_size, pack=pack)
    folder = tmp_path_factory.mktemp("setting")
    converted = quantize_model(build("bert"), config)
    converted.save_pretrained(folder)
    given = {key: value for key, value in inputs_of("bert").items() if key != "labels"}
    with torch.no_grad():
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.equal(loaded(**given).logits, converted(**given).logits)
    assert loaded.config.quantization_config.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": 9}, "weight_bits is 2 to 8; got 9"),
        ({"vector_bits": None}, "vector_bits is 2 to 8; got None"),
        ({"activation_bits": 1}, "activation_bits is 2 to 8, or None; got 1"),
        ({"block_size": 0}, "block_size is 1 or more; got 0"),
        ({"pack": 1}, "pack is True or False; got 1"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is a list of names; got 'lm_head'"),
        ({"quant_method": "other"}, "quant_method is 'bct'"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        BCTConfig(**fields)


def test_presets_are_the_published_settings():
    assert [
        (p.weight_bits, p.vector_bits, p.activation_bits) for p in map(BCTConfig.from_preset, BCTConfig.PRESETS)
    ] == [
        (8, 8, 8),
        (4, 8, 8),
    ]
    with pytest.raises(ValueError, match="bct_int8, bct_int4_8"):
        BCTConfig.from_preset("bct_int2")


def test_seq2seq_is_found_by_its_auto_class(tmp_path):
    described, _ = subject("t5")
    quantize_model(described.build(), SMALL).save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert blockwise.unpack(loaded.decoder.block[0].layer[0].SelfAttention.q.weight, 32).shape == (32, 32)


def test_transformers_knows_the_format_and_import_stays_cheap():
    assert type(AutoQuantizationConfig.from_dict({"quant_method": "bct", "weight_bits": 8})) is BCTConfig
    code = "import sys, hf_ext; assert not [name for name in sys.modules if name.startswith('hf_ext.quantizers')]"
    subprocess.run([sys.executable, "-c", code], check=True)
