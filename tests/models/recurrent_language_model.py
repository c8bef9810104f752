"""What every language model with a linear recurrence must do: `RecurrentLanguageModelTests`, of which each model's module makes a class."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from hf_ext.convert import convert_checkpoint
from hf_ext.layers.recurrent_decoder import RecurrentCache, RecurrentForCausalLM
from tests.passport import Subject, check_attention_implementations, check_batch_independence
from tests.tiny import TINY, tokens

WINDOWED = [
    {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": 5, "qkv_bias": True},
    {"layers": [3], "num_heads": 2},
]


def assert_padding_changes_nothing(model, real):
    ids, mask = tokens(61, batch=1, length=8), torch.tensor([real, [1] * 13])
    padded = tokens(61, batch=2, length=13)
    padded[0, mask[0] == 1] = ids[0]
    with torch.no_grad():
        output = model(padded, attention_mask=mask)
        torch.testing.assert_close(output.logits[:1, mask[0] == 1], model(ids).logits, atol=1e-5, rtol=1e-4)


def fused(state):
    """The same weights as they were saved before February 2025."""
    fused = {}
    for name, x in state.items():
        if name.endswith("mlp.up_proj.weight"):
            continue
        up = name.replace("gate_proj", "up_proj")
        fused[name] = torch.cat((x, state[up])) if name.endswith("mlp.gate_proj.weight") else x.clone()
    return fused


class RecurrentLanguageModelTests:
    """A subclass names the classes, and the settings of a plain model and one with convolutions."""

    slug: str
    model_class: type[RecurrentForCausalLM]
    cache_class: type[RecurrentCache]
    MODELS: ClassVar[dict[str, dict[str, Any]]]  # "convolution", "plain", "hybrid"

    @classmethod
    def tiny(cls, **overrides):
        fields = TINY[cls.slug]()[0].to_diff_dict()
        fields |= {"use_cache": True, "eos_token_id": None, "bos_token_id": None} | overrides
        return cls.model_class.config_class(**fields)

    @classmethod
    def build(cls, seed=0, **overrides):
        torch.manual_seed(seed)
        model = cls.model_class(cls.tiny(**overrides)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    @pytest.fixture(params=["convolution", "plain", "hybrid"])
    def model(self, request):
        return self.build(**self.MODELS[request.param])

    def test_decoding_with_the_cache_equals_one_forward_pass(self, model):
        ids = tokens(61, length=20)
        with torch.no_grad():
            whole = model(ids).logits
            first = model(ids[:, :9])
            cache, parts = first.past_key_values, [first.logits]
            for part in (ids[:, 9:10], ids[:, 10:17], ids[:, 17:18], ids[:, 18:]):
                parts.append(model(part, past_key_values=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)

    def test_a_plain_dynamic_cache_serves_too(self, model):
        ids = tokens(61, length=8)
        with torch.no_grad():
            expected = model(ids).logits[:, 5:]
            cache = DynamicCache(config=model.config)
            model(ids[:, :5], past_key_values=cache)
            torch.testing.assert_close(model(ids[:, 5:], past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-4)

    def test_the_state_does_not_grow_with_length(self):
        model = self.build()
        sizes = []
        for length in (3, 50):
            cache = model(tokens(61, length=length)).past_key_values
            sizes.append(
                [x.numel() for layer in cache.layers for x in (layer.recurrent_states[0], layer.conv_states[0])]
            )
        assert sizes[0] == sizes[1]
        assert cache.get_seq_length() == 50

    def test_padding_on_the_left_changes_nothing(self, model):
        assert_padding_changes_nothing(model, [0] * 5 + [1] * 8)

    def test_padding_on_the_right_changes_nothing(self, model):
        assert_padding_changes_nothing(model, [1] * 8 + [0] * 5)

    @pytest.mark.parametrize("name", ["convolution", "plain"])
    def test_padding_between_tokens_changes_nothing(self, name):
        """In a hybrid it does: softmax layers rotate by place, and a gap shifts places."""
        assert_padding_changes_nothing(self.build(**self.MODELS[name]), [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1])

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_decoding_goes_on_after_padding(self, side):
        model = self.build()
        ids, following = tokens(61, batch=1, length=8), tokens(61, batch=1, length=2)
        padding = torch.zeros(1, 5, dtype=torch.long)
        order = (padding, ids) if side == "left" else (ids, padding)
        mask = torch.cat([torch.ones_like(x) if x is ids else x for x in order], 1)
        with torch.no_grad():
            cache = model(torch.cat(order, 1), attention_mask=mask).past_key_values
            steps = [model(x, past_key_values=cache).logits for x in following.split(1, 1)]
            expected = model(torch.cat((ids, following), 1)).logits[:, -2:]
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-4)

    def test_a_layer_returns_exactly_zero_at_padding(self, model):
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
        outputs = []
        hooks = [layer.attn.register_forward_hook(lambda m, i, o: outputs.append(o[0])) for layer in model.model.layers]
        model(tokens(61, length=6), attention_mask=mask)
        for hook in hooks:
            hook.remove()
        assert all((output[mask == 0] == 0).all() and (output[mask == 1] != 0).any() for output in outputs)

    @pytest.mark.parametrize(
        "how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}], ids=["greedy", "beam", "sampled"]
    )
    def test_a_left_padded_batch_generates_what_single_prompts_do(self, model, how):
        short, long = tokens(61, batch=1, length=3), tokens(61, batch=1, length=7) % 60 + 1
        batch = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
        mask = (torch.arange(7) >= torch.tensor([[4], [0]])).long()
        together = model.generate(batch, attention_mask=mask, max_new_tokens=6, **how)[:, 7:]
        apart = [model.generate(x, max_new_tokens=6, **how)[:, x.shape[1] :] for x in (short, long)]
        assert torch.equal(together, torch.cat(apart))

    def test_generation_equals_greedy_search_without_a_cache(self, model):
        ids = tokens(61, length=5)
        expected = ids
        for _ in range(6):
            expected = torch.cat((expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)), 1)
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)

    @pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prefill_chunk_size": 2}])
    def test_other_ways_to_cache_generate_the_same(self, model, options):
        ids = tokens(61, length=5)
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, **options), expected)

    def test_a_cache_that_does_not_know_the_layers_is_refused(self):
        with pytest.raises(ValueError, match=f"make it with {self.cache_class.__name__}"):
            self.build()(tokens(61), past_key_values=DynamicCache())

    def test_decoding_compiles_without_graph_breaks(self):
        model, ids = self.build(), tokens(61)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        caches = [self.cache_class(model.config) for _ in range(2)]
        with torch.no_grad():
            for part in (ids, ids[:, :1], ids[:, 1:2], ids[:, 2:3]):
                logits = [m(part, past_key_values=cache).logits for m, cache in zip((compiled, model), caches)]
        torch.testing.assert_close(*logits)
        assert caches[0].get_seq_length() == 15

    def test_the_length_of_an_exported_model_may_be_dynamic(self):
        model = self.build()
        dynamic = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=512)}, "use_cache": None}
        inputs = {"input_ids": tokens(61), "use_cache": False}
        program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic).module()
        longer = tokens(61, length=70)
        torch.testing.assert_close(program(input_ids=longer, use_cache=False).logits, model(longer).logits)

    def test_a_conversation_goes_on_from_the_returned_cache(self):
        model = self.build()
        ids = tokens(61, batch=1, length=5)
        first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        assert isinstance(first.past_key_values, self.cache_class)
        longer = torch.cat((first.sequences, tokens(61, batch=1, length=3)), 1)
        again = model.generate(longer, max_new_tokens=4, do_sample=False, past_key_values=first.past_key_values)
        assert torch.equal(again, model.generate(longer, max_new_tokens=4, do_sample=False))

    def test_packed_sequences_equal_separate_ones(self, model):
        first, second = tokens(61, batch=1, length=7), tokens(61, batch=1, length=4)
        with torch.no_grad():
            expected = torch.cat([model(x).logits for x in (first, second)], 1)
            packed = model(torch.cat((first, second), 1), cu_seqlens=torch.tensor([0, 7, 11])).logits
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)

    def test_packed_sequences_cannot_continue_a_cache(self):
        model = self.build()
        with pytest.raises(ValueError, match="cu_seqlens"):
            model(tokens(61, batch=1), cu_seqlens=torch.tensor([0, 12]), past_key_values=self.cache_class(model.config))

    def test_logits_to_keep_keeps_the_last_ones(self):
        model, ids = self.build(), tokens(61)
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])

    def test_the_loss_is_the_mean_over_next_tokens(self):
        model, ids = self.build(), tokens(61)
        labels = ids.clone()
        labels[0, :5] = -100
        output = model(ids, labels=labels)
        expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)

    def test_the_l2_penalty_moves_the_gradient_and_not_the_loss(self):
        plain, penal = self.build(), self.build(use_l2warp=True)
        ids = tokens(61)
        losses = [model(ids, labels=ids).loss for model in (plain, penal)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        logits = plain(ids).logits
        top, index = logits.max(-1, keepdim=True)
        expected = torch.zeros_like(logits).scatter(-1, index, 1e-4 * top / index.numel())
        hidden = plain.model(ids).last_hidden_state
        difference = penal.lm_head.weight.grad - plain.lm_head.weight.grad
        torch.testing.assert_close(difference, torch.einsum("btv,btd->vd", expected, hidden), atol=1e-6, rtol=1e-3)

    def test_hidden_states_and_attentions_of_a_hybrid_are_recorded(self):
        model = self.build(**self.MODELS["hybrid"])
        model.set_attn_implementation("eager")
        output = model(tokens(61), output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == 5
        assert [x.shape for x in output.attentions] == [(2, 4, 12, 12), (2, 2, 12, 12)]
        assert (output.attentions[0][0, 0, 11, :7] == 0).all(), "the window is five tokens"

    def test_the_softmax_layers_of_a_hybrid_give_the_same_under_eager_and_sdpa(self):
        config = self.tiny(**self.MODELS["hybrid"], use_cache=False)
        subject = Subject(self.model_class, config, {"input_ids": tokens(61)})
        check_attention_implementations(subject)
        check_batch_independence(subject)

    def test_old_checkpoints_with_a_fused_gate_load_and_are_saved_split(self, tmp_path):
        model = self.build()
        model.config.save_pretrained(tmp_path)
        save_file(fused(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
        loaded.save_pretrained(tmp_path / "again")
        again = self.model_class.from_pretrained(tmp_path / "again")
        assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())

    @pytest.mark.parametrize("old", [False, True])
    def test_the_converter_takes_old_and_new_checkpoints(self, old):
        model = self.build()
        state = fused(model.state_dict()) if old else model.state_dict()
        arguments = self.tiny().to_diff_dict()
        converted = convert_checkpoint(self.slug, state, arguments)
        assert all(torch.equal(x, converted.state_dict()[name]) for name, x in model.state_dict().items())

    def test_input_is_given_once(self):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            self.build()()

    def test_the_base_model_gives_the_hidden_states_of_the_language_model(self):
        model, ids = self.build(), tokens(61)
        base = self.model_class.decoder_class(model.config)
        base.load_state_dict(model.model.state_dict())
        torch.testing.assert_close(model.lm_head(base.eval()(ids).last_hidden_state), model(ids).logits)
