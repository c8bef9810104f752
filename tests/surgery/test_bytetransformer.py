"""Padding-free encoders give what the padded ones give, whatever they are combined with."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_ext.surgery.bytetransformer import ENCODERS, disable_padding_free, enable_padding_free

WIDTHS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
FIELDS = {
    **{name: WIDTHS for name in ENCODERS},
    "distilbert": {"vocab_size": 50, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "pad_token_id": 0},
    "albert": WIDTHS | {"embedding_size": 16},
    "electra": WIDTHS | {"embedding_size": 16},
    "deberta": WIDTHS | DISENTANGLED,
    "deberta-v2": WIDTHS | DISENTANGLED | {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
}
LENGTHS = (9, 4, 12, 1)


def build(model_type, auto=AutoModel, **fields):
    torch.manual_seed(0)
    return auto.from_config(CONFIG_MAPPING[model_type](**FIELDS[model_type] | fields)).eval()


def batch(lengths=LENGTHS, size=12):
    ids = torch.randint(1, 50, (len(lengths), size), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def check(model, inputs, **options):
    """The states at real tokens, with the mode and without"""
    disable_padding_free(model)
    expected = model(**inputs, **options)
    found = enable_padding_free(model)(**inputs, **options)
    mask = inputs["attention_mask"].bool()
    states = zip(getattr(found, "hidden_states", None) or (), getattr(expected, "hidden_states", None) or ())
    for ours, theirs in [(found.last_hidden_state, expected.last_hidden_state), *states]:
        assert not ours[~mask].any()
        torch.testing.assert_close(ours[mask], theirs[mask], atol=2e-5, rtol=1e-4)
    return found, expected


@pytest.mark.parametrize("model_type", ENCODERS)
def test_real_tokens_get_what_the_padded_model_gives_them_and_padding_gets_zeros(model_type):
    found, expected = check(build(model_type), batch())
    if "pooler_output" in expected:
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_hidden_states_are_put_back_too(model_type):
    found, _ = check(build(model_type), batch(), output_hidden_states=True)
    assert len(found.hidden_states) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position_buckets": -1},
        {"share_att_key": True},
        {"pos_att_type": ["c2p"]},
        {"pos_att_type": ["p2c"]},
        {"relative_attention": False},
        {"max_relative_positions": 3, "position_buckets": -1},
        {"conv_kernel_size": 0},
    ],
)
@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2"])
def test_every_kind_of_disentangled_attention_is_the_same(model_type, fields):
    check(build(model_type, **fields), batch())


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    model_type=st.sampled_from(["bert", "albert", "deberta", "deberta-v2"]),
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3).filter(
        lambda mask: all(any(row) for row in mask)
    ),
)
def test_padding_may_stand_anywhere(model_type, mask):
    inputs = batch([6] * len(mask), 6) | {"attention_mask": torch.tensor(mask).long()}
    check(build(model_type), inputs)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_sequence_of_nothing_but_padding_gets_zeros(model_type):
    inputs = batch((5, 0, 12))
    model = enable_padding_free(build(model_type))
    states = model(**inputs).last_hidden_state
    assert not states[1].any() and states.isfinite().all()
    torch.testing.assert_close(states[0], model(**batch((5,))).last_hidden_state[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
@pytest.mark.parametrize("mask", [None, torch.ones(4, 12, dtype=torch.long)], ids=["none", "ones"])
def test_without_padding_nothing_changes(model_type, mask):
    model, inputs = build(model_type), batch((12,) * 4) | {"attention_mask": mask}
    expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(enable_padding_free(model)(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "deberta"])
def test_little_padding_takes_the_padded_way_to_the_same_result(model_type):
    model, inputs = enable_padding_free(build(model_type), min_padding=0.5), batch((12, 11, 12, 12))
    seen = shapes_of_linear_layers(model)
    states = model(**inputs).last_hidden_state
    assert (4, 12) in seen and not states[1, -1].any()
    expected = disable_padding_free(model)(**inputs).last_hidden_state
    torch.testing.assert_close(states[1, :-1], expected[1, :-1], atol=1e-5, rtol=1e-4)


def shapes_of_linear_layers(model):
    """Filled when the model is called"""
    shapes = set()
    for module in getattr(model, ENCODERS[model.config.model_type]).layer.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: shapes.add(tuple(inputs[0].shape[:-1])))
    return shapes


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "deberta-v2"])
def test_linear_layers_see_real_tokens_only(model_type):
    model = enable_padding_free(build(model_type))
    seen = shapes_of_linear_layers(model)
    model(**batch())
    assert (1, sum(LENGTHS)) in seen and all(shape[0] == 1 or shape == (8,) for shape in seen)


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_padded_model(model_type, checkpointing):
    model = build(model_type, AutoModelForSequenceClassification, num_labels=3)
    inputs = batch() | {"labels": torch.tensor([0, 1, 2, 0])}
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    enable_padding_free(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for config in (model.config, model.base_model.config):
            config.attention_probs_dropout_prob = 0.0
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_heads_read_the_same_states():
    model, inputs = build("albert", AutoModelForMaskedLM), batch()
    expected = model(**inputs).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(enable_padding_free(model)(**inputs).logits[mask], expected[mask], atol=2e-5, rtol=1e-4)


def test_tuples_are_put_back_as_well():
    model, inputs = build("bert"), batch()
    states = enable_padding_free(model)(**inputs, return_dict=False, output_hidden_states=True)
    assert states[0].shape == (4, 12, 32) and all(state.shape == (4, 12, 32) for state in states[2])


def test_disabled_model_is_what_it_was():
    for model_type in ("bert", "deberta-v2"):
        model, inputs = build(model_type), batch()
        before = model(**inputs).last_hidden_state
        kinds = [type(module) for module in model.modules()]
        disable_padding_free(enable_padding_free(enable_padding_free(model)))
        assert [type(module) for module in model.modules()] == kinds
        assert torch.equal(model(**inputs).last_hidden_state, before)
        copy.deepcopy(model)


@pytest.mark.parametrize("model_type", ["bert", "deberta"])
def test_saved_model_is_the_plain_one(model_type, tmp_path):
    model = enable_padding_free(build(model_type))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and "padding_free" not in (tmp_path / "config.json").read_text()
    check(loaded.eval(), batch())


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_works_on_a_model_in_8_bit(model_type, tmp_path):
    build(model_type).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    inputs, mask = batch(), batch()["attention_mask"].bool()
    expected = model(**inputs).last_hidden_state[mask]
    found = enable_padding_free(model)(**inputs).last_hidden_state[mask]
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("model_type", ["bert", "deberta"])
def test_works_on_a_model_offloaded_to_disk(model_type, tmp_path):
    build(model_type).save_pretrained(tmp_path)
    whole = AutoModel.from_pretrained(tmp_path).eval()
    devices = {name: "cpu" for name, _ in (*whole.named_children(), *whole.encoder.named_children())}
    # DeBERTa's encoder reads the weights of `rel_embeddings` itself: offloaded, it fails with and without the mode
    devices = {f"encoder.{name}" if hasattr(whole.encoder, name) else name: device for name, device in devices.items()}
    devices = {
        name: "disk" if name == "encoder.layer" else device for name, device in devices.items() if name != "encoder"
    }
    spread = AutoModel.from_pretrained(tmp_path, device_map=devices, offload_folder=tmp_path / "off").eval()
    states = [enable_padding_free(model)(**batch()).last_hidden_state for model in (spread, whole)]
    torch.testing.assert_close(*states)


def test_works_under_lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        build("bert", AutoModelForSequenceClassification),
        LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False),
    ).eval()
    expected = model(**batch()).logits
    torch.testing.assert_close(enable_padding_free(model)(**batch()).logits, expected, atol=2e-5, rtol=1e-4)
    enable_padding_free(model)(**batch(), labels=torch.zeros(4, dtype=torch.long)).loss.backward()


def test_compiled_and_exported_models_take_the_padded_way():
    model, inputs = build("bert"), batch()
    expected = model(**inputs).last_hidden_state
    enable_padding_free(model)
    exported = torch.export.export(model, (), inputs, strict=False).module()
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(exported(**inputs).last_hidden_state[mask], expected[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: enable_padding_free(AutoModel.from_config(GPT2Config(n_embd=16, n_head=2, n_layer=1))), "'gpt2'"),
        (lambda: enable_padding_free(torch.nn.Linear(2, 2)), "got a Linear"),
        (lambda: enable_padding_free(build("bert"), min_padding=2), "share from 0 to 1, got 2"),
        (lambda: enable_padding_free(build("deberta", talking_head=True)), "talking_head"),
        (lambda: enable_padding_free(build("bert"))(**batch(), output_attentions=True), "needs the padded form"),
    ],
)
def test_what_cannot_be_done_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_copying_is_refused_while_hooks_belong_to_the_original():
    with pytest.raises(TypeError, match="disable_padding_free"):
        copy.deepcopy(enable_padding_free(build("bert")))
