"""Encoders wide and deep: sizes, the ten kinds of attention, what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.convert import convert_checkpoint
from hf_ext.models.wide_attention import (
    WideAttentionConfig,
    WideAttentionForSequenceClassification,
    WideAttentionForSequencePairClassification,
    WideAttentionModel,
)
from hf_ext.models.wide_attention.configuration_wide_attention import ATTENTION_TYPES

COUNTS = {
    "text-6x8": 20_089_858,
    "text-3x16": 13_784_578,
    "text-2x24": 11_682_818,
    "text-1x48": 9_581_058,
    "matching-4x4": 3_486_722,
    "matching-2x8": 2_433_538,
    "matching-1x16": 1_906_946,
}
# attention whose padding is exact only where both its blocks and its tables know nothing of the length
LENGTH_FREE = ("transformer", "longformer", "sparse_transformer", "linear_transformer", "performer")


def build(attention_type="transformer", cls=WideAttentionModel, **fields):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        "block_size": 4,
        "sliding_window_size": 6,
        "num_fixed_columns": 1,
        "pooling": "mean",
    }
    return cls(WideAttentionConfig(**sizes | {"attention_type": attention_type} | fields)).eval()


def ids(batch=2, length=32, seed=1):
    return torch.randint(1, 30, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", COUNTS)
def test_preset_has_the_parameters_of_the_reference(preset):
    with torch.device("meta"):
        model = WideAttentionForSequenceClassification(WideAttentionConfig.from_preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[preset]


def test_every_preset_is_counted():
    assert set(COUNTS) == set(WideAttentionConfig.PRESETS)


def test_aspect_ratios_hold_the_heads_and_their_width():
    configs = list(WideAttentionConfig.aspect_ratios(8, head_dim=16))
    assert [(c.num_hidden_layers, c.num_attention_heads) for c in configs] == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert {c.head_dim for c in configs} == {16}


@pytest.mark.parametrize("quirks", [True, False])
@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_every_kind_trains(attention_type, quirks):
    model = build(attention_type, WideAttentionForSequenceClassification, reference_quirks=quirks).train()
    tokens = ids()
    tokens[1, 25:] = 0
    model(tokens, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_without_the_quirks_padding_does_not_matter(attention_type):
    model = build(attention_type, reference_quirks=False)
    short = ids(length=24)
    padded = torch.cat((short, torch.zeros(2, 8, dtype=torch.long)), 1)
    other = torch.cat((short, ids(length=8, seed=2)), 1)
    mask = (padded > 0).long()
    first, second = (model(x, attention_mask=mask) for x in (padded, other))
    torch.testing.assert_close(first.last_hidden_state[:, :24], second.last_hidden_state[:, :24], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.pooler_output, second.pooler_output, atol=1e-5, rtol=1e-4)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    attention_type=st.sampled_from(LENGTH_FREE),
    length=st.integers(1, 30),
    padding=st.integers(0, 9),
    pooling=st.sampled_from(["cls", "mean", "sum"]),
)
def test_padding_may_be_left_out(attention_type, length, padding, pooling):
    model = build(attention_type, reference_quirks=False, pooling=pooling)
    short = ids(length=length)
    padded = torch.cat((short, torch.zeros(2, padding, dtype=torch.long)), 1)
    torch.testing.assert_close(model(padded).pooler_output, model(short).pooler_output, atol=1e-5, rtol=1e-4)


def test_linear_attention_is_softmax_free_attention_by_another_order():
    attention = build("linear_transformer").layers[0].attention
    q, k, v = (torch.randn(1, 3, 7, 8) for _ in range(3))
    weights = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).transpose(2, 3)
    expected = weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v
    torch.testing.assert_close(attention.attend(q, k, v, None)[0], expected, atol=1e-5, rtol=1e-4)


def test_true_local_attention_is_attention_in_each_block():
    attention = build("local", reference_quirks=False).layers[0].attention
    q, k, v = (torch.randn(1, 3, 10, 8) for _ in range(3))
    o = attention.attend(q, k, v, None)[0]
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, rows], k[:, :, rows], v[:, :, rows])
        torch.testing.assert_close(o[:, :, rows], expected, atol=1e-5, rtol=1e-4)


def test_bigbird_over_few_blocks_reads_each_token_of_the_blocks_it_chose():
    attention = build("bigbird", reference_quirks=False).layers[0].attention
    q, k, v = (torch.randn(1, 3, 40, 8) for _ in range(3))
    o = attention.attend(q, k, v, None)[0]
    chosen = attention.random_blocks(10)
    for head in range(3):
        for row, fixed in ((0, range(10)), (1, (0, 1, 2, 9)), (5, (0, 9, 4, 5, 6)), (8, (0, 7, 8, 9)), (9, range(10))):
            blocks = [*fixed, *(chosen[head, row - 1].tolist() if 0 < row < 9 else ())]
            columns = torch.cat([torch.arange(4 * block, 4 * block + 4) for block in blocks])
            rows = slice(4 * row, 4 * row + 4)
            expected = torch.nn.functional.scaled_dot_product_attention(
                q[:, head, rows], k[:, head, columns], v[:, head, columns]
            )
            torch.testing.assert_close(o[:, head, rows], expected, atol=1e-5, rtol=1e-4)


def test_true_sorting_brings_blocks_to_places():
    attention = build("sinkhorn", reference_quirks=False).layers[0].attention
    with torch.no_grad():
        attention.sort.weight.zero_()
    q, k, v = (torch.randn(1, 3, 8, 8) for _ in range(3))
    o = attention.attend(q, k, v, None)[0]
    mean_k, mean_v = (x.unflatten(2, (2, 4)).mean(2).repeat(1, 1, 2, 1).unflatten(2, (2, 4)) for x in (k, v))
    blocks = [x.unflatten(2, (2, 4)) for x in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(*blocks) + attend(blocks[0], mean_k, mean_v)
    torch.testing.assert_close(o, expected.flatten(2, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["random", "factorized_random"])
@pytest.mark.parametrize("alone", [True, False])
def test_synthesizer_has_only_the_projections_it_reads(mode, alone):
    model = build("synthesizer", synthesizer_mode=mode, ignore_dot_product=alone)
    assert hasattr(model.layers[0].attention, "q_proj") is not alone
    assert model(ids()).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "sum", "flatten"])
def test_every_pooling_classifies(pooling):
    model = build(cls=WideAttentionForSequenceClassification, pooling=pooling, num_labels=5)
    assert model(ids()).logits.shape == (2, 5)


def test_learned_positions_are_read():
    model = build(learned_positions=True)
    before = model(ids()).last_hidden_state
    with torch.no_grad():
        model.embeddings.position_embeddings[:, 3] += 1
    assert not torch.equal(model(ids()).last_hidden_state, before)


def test_pairs_are_told_apart_by_their_order_and_may_differ_in_length():
    model = build(cls=WideAttentionForSequencePairClassification, num_labels=2)
    a, b = ids(length=10), ids(length=17, seed=3)
    first, second = model(a, pair_input_ids=b).logits, model(b, pair_input_ids=a).logits
    assert first.shape == (2, 2) and not torch.allclose(first, second)


def test_embeddings_may_be_given_instead_of_ids():
    model = build()
    tokens = ids()
    embeds = model.get_input_embeddings()(tokens)
    torch.testing.assert_close(model(inputs_embeds=embeds).last_hidden_state, model(tokens).last_hidden_state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_type": "none"}, "`attention_type` must be one of transformer"),
        ({"pooling": "max"}, "`pooling` must be one of cls"),
        ({"synthesizer_mode": "dense"}, "`synthesizer_mode` must be one of"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be 1 or more, got 0"),
        ({"hidden_dropout_prob": 1.0}, "`hidden_dropout_prob` must be at least 0 and below 1"),
        ({"block_size": 0}, "`block_size` must be 1 or more"),
        ({"attention_type": "sparse_transformer", "num_fixed_columns": 51}, "`num_fixed_columns` must be between"),
        ({"attention_type": "sinkhorn"}, "no room for a class token"),
        ({"hidden_size": 15}, "`hidden_size` must be even"),
    ],
)
def test_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WideAttentionConfig(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build()(ids(length=41)), "1 to `max_position_embeddings` = 40 tokens, got \\(2, 41\\)"),
        (lambda: build()(ids()[0]), "got \\(32,\\)"),
        (lambda: build()(ids(length=0)), "got \\(2, 0\\)"),
        (lambda: build()(), "either `input_ids` or `inputs_embeds`"),
        (lambda: build()(ids(), attention_mask=torch.ones(2, 3)), "`attention_mask` must be .* = \\(2, 32\\), got \\(2, 3\\)"),
        (lambda: build("sinkhorn")(ids(length=30)), "multiple of `block_size` = 4 tokens"),
        (lambda: build("bigbird")(ids(length=8)), "too few"),
        (lambda: build(cls=WideAttentionForSequencePairClassification)(ids()), "`pair_input_ids` must hold"),
        (lambda: convert_checkpoint("wide_attention", {}, {"depth": 3}), "no argument depth"),
        (lambda: list(WideAttentionConfig.aspect_ratios(0)), "`total_heads` must be 1 or more"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
