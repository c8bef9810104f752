"""The Routing Transformer: sizes, decoding, padding, what leaks and what does not, centroids in training, conversion, bad input."""

import math
import os

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from hf_ext.convert import ConversionError, convert_checkpoint
from hf_ext.models.routing_transformer import (
    RoutingTransformerConfig,
    RoutingTransformerForCausalLM,
    RoutingTransformerModel,
)
from hf_ext.ops.routed_attention import kmeans_statistics, kmeans_update
from tests.goldens import FOLDER, read_case
from tests.tiny import TINY, tokens


def tiny(**overrides):
    fields = TINY["routing_transformer"]()[0].to_diff_dict()
    return RoutingTransformerConfig(**fields | {"use_cache": True, "ema": True, "eos_token_id": None} | overrides)


def build(seed=0, **overrides):
    torch.manual_seed(seed)
    model = RoutingTransformerForCausalLM(tiny(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


MODELS = {
    "shared queries": {},
    "keys apart": {"share_qk": False},
    "every kind of head": {
        "num_routing_heads": 1,
        "num_strided_routing_heads": 1,
        "num_strided_heads": 1,
        "num_local_heads": 1,
        "first_routing_layer": 0,
        "strided_relative": True,
    },
    "hashing": {"hash_items": True, "num_clusters": 4},
    "local": {"num_routing_heads": 0, "num_local_heads": 4, "look_back": 8},
    "timing signal": {"add_timing_signal": True, "routing_relative": False, "local_relative": False},
    "pre-norm": {"layer_preprocess_sequence": "n", "layer_postprocess_sequence": "da", "hidden_act": "relu"},
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return build(**MODELS[request.param])


COUNTS = {
    "enwik8-local-cluster-8k": 372_603_902,
    "enwik8-local-cluster-12k": 369_458_174,
    "wikitext103-local-cluster-4k": 245_590_782,
    "pg19-local-8k": 617_508_814,
    "pg19-local-cluster-8k": 583_319_686,
    "pg19-released": 490_701_884,
}


@pytest.mark.parametrize("preset", RoutingTransformerConfig.PRESETS)
def test_presets_have_the_parameters_of_the_references_variables(preset):
    """Counted twice: the model's, and those that the reference's names and shapes add up to."""
    config = RoutingTransformerConfig.from_preset(preset)
    with torch.device("meta"):
        model = RoutingTransformerForCausalLM(config)
    width, narrow, inner, vocab = config.hidden_size, config.embedding_size, config.intermediate_size, config.vocab_size
    head = width // config.num_attention_heads
    tables = 2 * (2 * config.max_relative_position + 1) * head
    mlp = 3 * width * inner if config.hidden_act == "geglu" else 2 * width * inner + inner + width
    layer = 4 * width**2 + head**2 + 4 * width + mlp + tables
    routing = config.num_hidden_layers - config.first_routing_layer if config.num_routing_heads else 0
    factored = 0 if narrow == width else width * narrow + narrow
    total = vocab * narrow + narrow * width + width + factored + narrow * vocab + vocab
    assert model.num_parameters() == COUNTS[preset] == total + config.num_hidden_layers * layer + routing * tables


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="pg19-released"):
        RoutingTransformerConfig.from_preset("pg19")


def distinct(length, batch=2):
    """Token ids without repetition: equal tokens are equally similar to a centroid, and rounding then decides who is taken."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(60, generator=generator)[:length] + 1 for _ in range(batch)])


def decode(model, ids, start, mask=None):
    """Logits of everything from `start` on, one token a step, after a prompt read at once."""
    with torch.no_grad():
        first = model(ids[:, :start], attention_mask=None if mask is None else mask[:, :start])
        cache, parts = first.past_key_values, []
        for t in range(start, ids.shape[1]):
            here = None if mask is None else mask[:, : t + 1]
            parts.append(model(ids[:, t : t + 1], attention_mask=here, past_key_values=cache).logits)
    return torch.cat(parts, 1)


def test_one_layer_decodes_what_the_parallel_pass_gives_for_its_last_token(model):
    """In deeper models earlier tokens were routed among fewer others when their keys were made, as in the reference."""
    config = model.config.to_diff_dict()
    single = build(**MODELS["shared queries"] | config | {"num_hidden_layers": 1, "first_routing_layer": 0})
    ids = distinct(19)
    steps = decode(single, ids, 9)
    for t in range(9, 19):
        torch.testing.assert_close(steps[:, t - 9], single(ids[:, : t + 1]).logits[:, -1], atol=1e-5, rtol=1e-4)


def test_decoding_never_sees_later_tokens(model):
    ids, other = tokens(61, length=16), tokens(61, length=16)
    other[:, 12:] = 7
    torch.testing.assert_close(decode(model, ids, 6)[:, :6], decode(model, other, 6)[:, :6], atol=0, rtol=0)


def test_without_routing_heads_the_parallel_pass_is_causal_and_decoding_equals_it():
    model, ids = build(**MODELS["local"]), tokens(61, length=19)
    whole = model(ids).logits
    changed = ids.clone()
    changed[:, 12:] = 7
    torch.testing.assert_close(model(changed).logits[:, :12], whole[:, :12])
    torch.testing.assert_close(decode(model, ids, 5), whole[:, 5:], atol=1e-5, rtol=1e-4)


def test_with_routing_heads_later_tokens_change_who_is_taken():
    """The reference's property, which its cases show: not a mask that fails, but clusters that choose among all tokens."""
    model, ids = build(cluster_window=4), tokens(61, length=40)
    changed = ids.clone()
    changed[:, 20:] = 7
    assert not torch.allclose(model(changed).logits[:, :20], model(ids).logits[:, :20])


def test_clusters_that_take_every_token_are_causal():
    model, ids = build(cluster_window=40), tokens(61, length=40)
    changed = ids.clone()
    changed[:, 20:] = 7
    torch.testing.assert_close(model(changed).logits[:, :20], model(ids).logits[:, :20], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    ids, padding = tokens(61, batch=1, length=14), torch.full((1, 5), 9)
    order = (padding, ids) if side == "left" else (ids, padding)
    padded = torch.cat((torch.cat(order, 1), tokens(61, batch=1, length=19)))
    mask = torch.cat([torch.full_like(x, x is ids) for x in order], 1)
    mask = torch.cat((mask, torch.ones_like(mask)))
    with torch.no_grad():
        logits = model(padded, attention_mask=mask).logits[:1, mask[0] == 1]
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_left_padded_batch_generates_what_single_prompts_do(model):
    short, long = tokens(61, batch=1, length=6), tokens(61, batch=1, length=11) % 60 + 1
    batch = torch.cat((torch.cat((torch.zeros(1, 5, dtype=torch.long), short), 1), long))
    mask = (torch.arange(11) >= torch.tensor([[5], [0]])).long()
    options = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(batch, attention_mask=mask, **options)[:, 11:]
    apart = [model.generate(x, attention_mask=torch.ones_like(x), **options)[:, x.shape[1] :] for x in (short, long)]
    assert torch.equal(together, torch.cat(apart))


def test_generation_is_greedy_decoding_with_the_cache(model):
    ids = tokens(61, length=9)
    generated = model.generate(ids, max_new_tokens=5, do_sample=False)
    steps = decode(model, generated, 9)
    assert torch.equal(steps[:, :-1].argmax(-1), generated[:, 10:])


def test_generation_samples_and_searches_with_beams():
    model, ids = build(), tokens(61, length=9)
    assert model.generate(ids, max_new_tokens=4, num_beams=3).shape == (2, 13)
    assert model.generate(ids, max_new_tokens=4, do_sample=True, top_k=40).shape == (2, 13)


def test_a_text_starts_with_id_0_when_there_is_no_prompt():
    assert build().generate(max_new_tokens=3)[0, 0] == 0


def test_a_chunk_of_tokens_may_follow_a_cache():
    model, ids = build(num_hidden_layers=1, first_routing_layer=0), distinct(15)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :8], past_key_values=cache)
        chunk = model(ids[:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(chunk, model(ids).logits[:, 8:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share_qk", [True, False])
def test_centroids_follow_the_tokens_in_training_only(share_qk):
    model, ids = build(share_qk=share_qk), tokens(61, length=22)
    heads = model.model.layers[1].attention.routing
    before = {name: x.clone() for name, x in heads.named_buffers()}
    model.eval()(ids)
    assert all(torch.equal(x, before[name]) for name, x in heads.named_buffers())

    seen = []
    heads.register_forward_hook(lambda module, arguments, output: seen.append(output[2]))
    model.train()(ids)
    (counts, sums) = seen[0]
    assert len(counts) == (1 if share_qk else 2)
    expected = [before[name] for name in ("means", "ema_count", "ema_means")]
    for count, total in zip(counts, sums):
        expected = kmeans_update(count, total, *expected[1:], heads.decay)
    for name, x in zip(("means", "ema_count", "ema_means"), expected):
        torch.testing.assert_close(getattr(heads, name), x)


def _train_in_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = build().train()
    model(tokens(61, length=22)[rank : rank + 1])
    torch.save(dict(model.named_buffers()), folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # destructors of a forked process may wait for threads that the fork did not copy


def test_processes_move_their_centroids_by_the_tokens_of_all(tmp_path):
    torch.multiprocessing.start_processes(_train_in_a_process, (tmp_path,), nprocs=2, start_method="fork")
    model = build().train()
    model(tokens(61, length=22))
    for rank in range(2):
        for name, x in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(x, model.get_buffer(name), msg=lambda m, n=name: f"{n}: {m}")


def test_counts_of_all_heads_together_are_those_of_the_tokens():
    items = torch.randn(2, 3, 8, 4)
    counts, _ = kmeans_statistics(items, torch.randint(0, 5, (2, 3, 8)), 5)
    assert counts.sum() == 2 * 3 * 8


def test_gradient_checkpointing_moves_centroids_once_and_repeats_the_same_routing():
    ids, results = tokens(61, length=22), []
    for enabled in (False, True):
        model = build(hidden_dropout=0.1).train()
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model(ids, labels=ids).loss.backward()
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(checkpointed, plain)


def test_dropouts_act_in_training_only():
    rates = dict.fromkeys(("token_dropout", "embedding_dropout", "attention_dropout", "activation_dropout"), 0.5)
    model, ids = build(**rates), tokens(61)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)


def test_labels_of_id_0_carry_no_loss():
    model, ids = build(), tokens(61)
    labels = ids.clone()
    labels[:, 5] = 0
    ignored = labels.masked_fill(labels == 0, -100)
    assert model(ids, labels=labels).loss == model(ids, labels=ignored).loss != model(ids, labels=ids).loss


def test_the_loss_has_the_clustering_loss_in_it():
    model, ids = build(commitment_weight=1.0), tokens(61)
    output = model(ids, labels=ids)
    cross_entropy = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, cross_entropy + output.aux_loss.squeeze())
    assert output.aux_loss > 0.1


def test_attention_without_a_residual_partner_is_hidden_from_nothing():
    """`hidden_act="none"` leaves the MLP out, its norm stays."""
    model = build(hidden_act="none")
    assert not [name for name, _ in model.named_parameters() if ".mlp." in name]
    assert model(tokens(61)).logits.isfinite().all()


def test_the_base_model_gives_the_hidden_states_of_the_language_model():
    model, ids = build(), tokens(61)
    base = RoutingTransformerModel(model.config)
    base.load_state_dict(model.model.state_dict())
    hidden = base.eval()(ids, output_hidden_states=True)
    torch.testing.assert_close(model.lm_head(model.head_projection(hidden.last_hidden_state)), model(ids).logits)
    assert len(hidden.hidden_states) == 4


def test_checkpoints_of_every_mlp_convert_and_leftovers_are_named():
    case = read_case(FOLDER / "routing_transformer" / "lm_relu_factored")
    state = dict(case["state_dict"])
    state["sparse_transformer/body/decoder_layer_0/extra"] = state.pop("sparse_transformer/body/final_dense_2/bias")
    state["global_step"] = torch.tensor(5)
    with pytest.raises(ConversionError, match=r"left over: (.|\n)*extra(.|\n)*missing: lm_head.bias"):
        convert_checkpoint("routing_transformer", state, case["arguments"])


EVERY_KIND = {
    "vocab_size": 20,
    "hidden_size": 16,
    "embedding_dims": 16,
    "filter_size": 24,
    "num_decoder_layers": 1,
    "local_num_heads": 1,
    "sparsity_cluster_num_heads": 1,
    "sparsity_cluster_strided_num_heads": 1,
    "sparsity_strided_num_heads": 1,
    "sparsity_strided_relative": True,
    "sparsity_cluster_size": 3,
    "sparsity_cluster_attention_window": 4,
    "query_shape": [4],
    "memory_flange": [4],
    "max_relative_position": 5,
    "layer_preprocess_sequence": "n",
    "layer_postprocess_sequence": "da",
}


@pytest.mark.parametrize("hashed", [False, True], ids=["centroids", "hashing"])
def test_variables_of_every_kind_of_head_convert(hashed):
    """Names as the reference's variable scopes make them."""
    arguments = EVERY_KIND | ({"hash_items": True, "sparsity_cluster_size": 4} if hashed else {})
    clusters = arguments["sparsity_cluster_size"]
    layer = "decoder_layer_0/self_attention/"
    heads = layer + "self_attention/attention_nd/"
    shapes = {"embeddings/embedding": (20, 16), "emb_dense/kernel": (16, 16), "emb_dense/bias": (16,)}
    shapes |= {"final_dense_2/kernel": (16, 20), "final_dense_2/bias": (20,), heads + "dense/kernel": (4, 4)}
    shapes |= {f"{layer}self_attention/{name}/kernel": (16, 16) for name in ("q", "k", "v", "output_transform")}
    shapes |= {f"{layer}ffn/weight{i}/kernel": (16, 24) if i < 3 else (24, 16) for i in (1, 2, 3)}
    norms = ("layer_prepostprocess", layer + "layer_prepostprocess", layer + "layer_prepostprocess_1")
    shapes |= {f"{name}/layer_norm/layer_norm_{part}": (16,) for name in norms for part in ("scale", "bias")}
    for kind in ("cluster", "cluster_strided", "strided"):
        scope = f"{heads}{kind}_attention/{kind}_attention/"
        if kind == "cluster" and hashed:
            shapes[scope + "projection_tensors"] = (1, 2, 4)
        elif kind != "strided":
            means = {"means": (1, clusters, 4), "ema_count": (1, clusters), "ema_means": (1, clusters, 4)}
            shapes |= {scope + name: shape for name, shape in means.items()}
        shapes |= {f"{scope}relative_positions_{part}/embeddings": (11, 4) for part in ("keys", "values")}
    shapes |= {f"{heads}local_nd/relative_positions_{part}/embeddings": (11, 4) for part in ("keys", "values")}
    generator = torch.Generator().manual_seed(0)
    state = {f"sparse_transformer/body/{n}": torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    model = convert_checkpoint("routing_transformer", state, arguments)
    kernel = state["sparse_transformer/body/" + layer + "ffn/weight3/kernel"]
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, kernel.T)
    assert model(tokens(20, length=10)).logits.isfinite().all()


WRONG_ARGUMENTS = {
    "no hparam heads": {"heads": 4},
    "num_encoder_layers=6": {"num_encoder_layers": 6},
    "query_shape": {"query_shape": [16, 16]},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_the_converter_names_what_it_cannot_take(message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("routing_transformer", {}, WRONG_ARGUMENTS[message])


WRONG_CONFIGS = {
    "hidden_size=0": {"hidden_size": 0},
    "must be at least 1 and divide": {"num_local_heads": 5},
    "look_back=6 must be a multiple": {"look_back": 6},
    "num_strided_routing_heads=2": {"num_strided_routing_heads": 2, "num_routing_heads": 1, "num_local_heads": 1},
    "cluster_window=0": {"cluster_window": 0},
    "num_clusters=1": {"num_clusters": 1, "hash_items": True},
    "key_channels=16": {"key_channels": 16},
    "max_relative_position=0": {"max_relative_position": 0},
    "hidden_act='gelu'": {"hidden_act": "gelu"},
    "layer_preprocess_sequence='a'": {"layer_preprocess_sequence": "a"},
    "layer_postprocess_sequence='dann'": {"layer_postprocess_sequence": "dann"},
    "token_dropout=1": {"token_dropout": 1.0},
    "ema_decay=1.0": {"ema_decay": 1.0},
    "layer_norm_eps=0": {"layer_norm_eps": 0.0},
    "first_routing_layer=-1": {"first_routing_layer": -1},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_impossible_configurations_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        tiny(**WRONG_CONFIGS[message])


def test_wrong_inputs_are_refused():
    model, ids = build(), tokens(61)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="attention_mask must be"):
        model(ids, attention_mask=torch.ones(2, 5))


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    length=st.integers(1, 30),
    block_size=st.integers(1, 5),
    blocks_back=st.integers(0, 2),
    num_clusters=st.integers(1, 4),
    cluster_window=st.integers(1, 40),
    share_qk=st.booleans(),
    ema=st.booleans(),
    local_relative=st.booleans(),
    routing_relative=st.booleans(),
    hidden_act=st.sampled_from(["geglu", "relu", "none"]),
)
def test_any_configuration_trains_and_decodes(length, block_size, blocks_back, **overrides):
    model = build(
        num_hidden_layers=1,
        first_routing_layer=0,
        block_size=block_size,
        look_back=blocks_back * block_size,
        **overrides,
    )
    ids = distinct(length + 1)
    output = model.train()(ids, labels=ids)
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    last = decode(model.eval(), ids, length)
    torch.testing.assert_close(last[:, 0], model(ids).logits[:, -1], atol=1e-5, rtol=1e-4)
