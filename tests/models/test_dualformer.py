"""Dualformer: sizes, modes of generation, caches, padding, the loss, the vocabularies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.convert import convert_checkpoint
from hf_ext.models.dualformer import DualformerConfig, DualformerForConditionalGeneration, DualformerTokenizer

COUNTS = {
    "dualformer-s": {118: 6_304_128, 938: 6_776_448, 40017: 29_285_952},
    "dualformer-m-s": {118: 33_329_664, 938: 34_274_304, 40017: 79_293_312},
    "dualformer-l": {118: 149_533_440, 938: 151_422_720, 40017: 241_460_736},
    "dualformer-xl-2": {118: 596_371_968, 938: 599_205_888, 40017: 734_262_912},
}
PLAN, CREATE = 20, 21
SIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
REFERENCE_SIDE = {"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 20}


def build(seed=0, **fields):
    torch.manual_seed(seed)
    config = {"encoder": SIDE, "decoder": SIDE, "vocab_size": 30, "plan_token_id": PLAN, "create_token_id": CREATE}
    model = DualformerForConditionalGeneration(DualformerConfig(**config | fields)).eval()
    with torch.no_grad():  # initial weights are so small that everything has nearly the same logits
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def ids(batch=2, length=9, seed=1):
    return torch.randint(2, 30, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("preset", "vocab_size"), [(name, size) for name in COUNTS for size in COUNTS[name]])
def test_preset_has_the_parameters_of_the_reference(preset, vocab_size):
    with torch.device("meta"):
        model = DualformerForConditionalGeneration(DualformerConfig.from_preset(preset, vocab_size=vocab_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[preset][vocab_size]


def test_every_preset_is_counted():
    assert set(COUNTS) == set(DualformerConfig.PRESETS)


@pytest.mark.parametrize(("mode", "opening"), [("fast", [0, PLAN]), ("slow", [0, CREATE]), ("auto", [0])])
def test_mode_forces_how_the_answer_opens(mode, opening):
    written = build().generate(ids(), mode=mode, max_new_tokens=4, do_sample=False)
    assert written[:, : len(opening)].tolist() == [opening] * 2


def test_the_generation_config_may_hold_the_mode():
    model = build()
    model.generation_config.mode = "fast"
    assert model.generate(ids(), max_new_tokens=2, do_sample=False)[:, 1].tolist() == [PLAN] * 2


def test_generation_is_the_greedy_choice_of_the_whole_forward():
    model, prompts = build(), ids()
    written = model.generate(prompts, mode="slow", max_new_tokens=12, min_new_tokens=12, do_sample=False)
    with torch.no_grad():
        logits = model(prompts, decoder_input_ids=written).logits
    logits[..., model.config.eos_token_id] = -torch.inf  # what min_new_tokens forbids
    assert torch.equal(logits[:, 1:-1].argmax(-1), written[:, 2:])


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_caches_do_not_change_the_answer(implementation):
    model, prompts = build(), ids()
    arguments = {"mode": "fast", "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompts, use_cache=False, **arguments)
    assert torch.equal(model.generate(prompts, cache_implementation=implementation, **arguments), expected)


def test_samples_of_one_prompt_come_in_any_number():
    written = build().generate(ids(1), mode="slow", do_sample=True, num_return_sequences=5, max_new_tokens=3)
    assert written.shape[0] == 5 and set(written[:, 1].tolist()) == {CREATE}


def test_beams_are_served():
    assert build().generate(ids(), mode="fast", num_beams=3, max_new_tokens=4).shape[0] == 2


@pytest.mark.parametrize("masked", [True, False])
def test_padding_of_prompts_matters_only_where_the_encoder_sees_it(masked):
    model, prompts, answers = build(encoder_padding_mask=masked), ids(), ids(length=5, seed=2)
    padded = torch.nn.functional.pad(prompts, (0, 4))
    mask = torch.nn.functional.pad(torch.ones_like(prompts), (0, 4))
    with torch.no_grad():
        expected = model(prompts, decoder_input_ids=answers).logits
        found = model(padded, attention_mask=mask, decoder_input_ids=answers).logits
    assert torch.allclose(found, expected, atol=1e-4) == masked


def test_decoder_is_causal_and_encoder_is_not():
    model, prompts, answers = build(), ids(1), ids(1, 6, seed=2)
    changed_prompt, changed_answer = prompts.clone(), answers.clone()
    changed_prompt[:, -1], changed_answer[:, -1] = 2 + (prompts[:, -1] - 1) % 28, 2 + (answers[:, -1] - 1) % 28
    with torch.no_grad():
        logits = model(prompts, decoder_input_ids=answers).logits
        torch.testing.assert_close(model(prompts, decoder_input_ids=changed_answer).logits[:, :-1], logits[:, :-1])
        assert not torch.allclose(
            model(changed_prompt, decoder_input_ids=answers).logits[:, 0], logits[:, 0], atol=1e-3
        )


def test_loss_is_a_mean_over_sequences_whatever_their_lengths():
    model, prompts, labels = build(), ids(), ids(length=7, seed=3)
    labels[1, 3:] = -100
    alone = [model(prompts[i : i + 1], labels=labels[i : i + 1, :n]).loss for i, n in ((0, 7), (1, 3))]
    torch.testing.assert_close(model(prompts, labels=labels).loss, sum(alone) / 2)


def test_labels_alone_are_shifted_to_decoder_inputs():
    model, labels = build(), ids(length=6, seed=4)
    shifted = torch.cat((torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]), 1)
    torch.testing.assert_close(
        model(ids(), labels=labels).logits, model(ids(), labels=labels, decoder_input_ids=shifted).logits
    )


@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    encoder_width=st.sampled_from([16, 24]),
    decoder_width=st.sampled_from([16, 32]),
    layers=st.integers(1, 2),
    affine=st.booleans(),
    prompt=st.integers(1, 7),
    answer=st.integers(1, 7),
)
def test_any_widths_and_lengths_fit(encoder_width, decoder_width, layers, affine, prompt, answer):
    side = {"num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 20, "norm_affine": affine}
    model = build(encoder=side | {"hidden_size": encoder_width}, decoder=side | {"hidden_size": decoder_width})
    output = model(ids(3, prompt), decoder_input_ids=ids(3, answer), output_hidden_states=True, output_attentions=True)
    assert output.logits.shape == (3, answer, 30)
    assert output.encoder_hidden_states[0].shape == (3, prompt, encoder_width)
    assert output.decoder_hidden_states[0].shape == (3, answer, decoder_width)


def test_attentions_are_those_of_the_layers():
    model = build()
    model.set_attn_implementation("eager")
    output = model(ids(), decoder_input_ids=ids(length=5), output_attentions=True)
    shapes = [x[0].shape for x in (output.encoder_attentions, output.decoder_attentions, output.cross_attentions)]
    assert shapes == [(2, 4, 9, 9), (2, 4, 5, 5), (2, 4, 5, 9)]


def test_rotary_tables_and_prefixes_of_checkpoints_are_taken_off():
    model = convert_checkpoint("dualformer", reference_state(), {"encoder": REFERENCE_SIDE, "decoder": REFERENCE_SIDE})
    assert isinstance(model, DualformerForConditionalGeneration)


def reference_state():
    """A checkpoint as the loss module saves it"""
    width, hidden = 16, 256
    attention = {f"w{x}.weight": (width, width) for x in "qkvo"}
    layer = {f"attention.{name}": shape for name, shape in attention.items()}
    layer |= {"feed_forward.w1.weight": (hidden, width), "feed_forward.w2.weight": (width, hidden)}
    layer |= {"feed_forward.w3.weight": (hidden, width), "attention_norm.weight": (width,), "ffn_norm.weight": (width,)}
    layer |= {"attention.rope.cos_param": (1, 8, 1, 4)}
    cross = {f"attention_feat.{name}": shape for name, shape in attention.items()} | {
        "attention_feat_norm.weight": (width,)
    }
    shapes = {}
    for side, layers, out in (("encoder", layer, width), ("decoder", layer | cross, 20)):
        shapes |= {f"{side}.embedding.weight": (20, width), f"{side}.rope.sin_param": (1, 8, 1, 4)}
        shapes |= {f"{side}.output.0.weight": (width,), f"{side}.output.1.weight": (out, width)}
        shapes |= {f"{side}.layers.0.{name}": shape for name, shape in layers.items()}
    return {f"model.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": REFERENCE_SIDE}, "decoder"),
        ({"encoder": REFERENCE_SIDE, "decoder": REFERENCE_SIDE | {"width": 3}}, "width"),
        ({"encoder": REFERENCE_SIDE | {"output_size": 8}, "decoder": REFERENCE_SIDE}, "output_size"),
        ({"encoder": {"dim": 16}, "decoder": REFERENCE_SIDE}, "n_layers"),
    ],
)
def test_converter_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("dualformer", {}, arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": SIDE | {"hidden_size": 30}}, "hidden_size"),
        ({"encoder": SIDE | {"num_hidden_layers": 0}}, "num_hidden_layers"),
        ({"decoder": SIDE | {"attention_dropout": 1.0}}, "attention_dropout"),
        ({"decoder": SIDE | {"intermediate_size": 0}}, "intermediate_size"),
        ({"plan_token_id": 30}, "plan_token_id"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_impossible_configuration_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="fast, slow, auto"):
        build().generate(ids(), mode="quick")


def test_mode_without_its_token_is_refused():
    with pytest.raises(ValueError, match="plan_token_id"):
        build(plan_token_id=None).generate(ids(), mode="fast")


def test_mode_beside_an_opening_is_refused():
    with pytest.raises(ValueError, match="decoder_input_ids"):
        build().generate(ids(), mode="fast", decoder_input_ids=ids())


def test_ids_of_another_rank_are_refused():
    with pytest.raises(ValueError, match="batch, tokens"):
        build()(ids()[0], decoder_input_ids=ids())


def test_saved_tokenizer_is_found_by_the_auto_class(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = DualformerTokenizer.for_maze(4, 3)
    build().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is DualformerTokenizer and loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("start 0 0 goal 3 2")["input_ids"] == tokenizer("start 0 0 goal 3 2")["input_ids"]


@pytest.mark.parametrize(("width", "height", "size"), [(10, 10, 118), (30, 30, 938), (5, 4, 33)])
def test_maze_vocabularies_have_the_published_sizes(width, height, size):
    assert len(DualformerTokenizer.for_maze(width, height)) == size


def test_sokoban_vocabulary_has_the_published_size():
    assert len(DualformerTokenizer.for_sokoban()) == 40016


def test_prompts_stand_between_bos_and_eos_and_come_back():
    tokenizer = DualformerTokenizer.for_maze(5, 5)
    found = tokenizer("start 0 0 goal 4 4")["input_ids"]
    assert (found[0], found[-1]) == (0, 1)
    assert tokenizer.decode(found, skip_special_tokens=True) == "start 0 0 goal 4 4"
