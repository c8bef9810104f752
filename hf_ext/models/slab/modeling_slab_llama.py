"""Llama with progressive re-parameterized batch normalization (PRepBN) in the place of RMSNorm.

Paper: SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization,
arXiv 2405.11582, sections 3.1 and 4.3. Reference: xinghaochen/SLAB, llama.
Attention, MLP, cache and generation are those of Transformers. As there, only the final norm leaves padding out of its statistics, and
it is the one norm that `model.fuse()` keeps: the head has no bias to fold it into.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from hf_ext.layers.fusion import FusionMixin
from hf_ext.layers.repbn import LinearNorm, RepBatchNorm, fold_into_followers

from .configuration_slab_llama import SlabLlamaConfig


def progressive_norm(config: SlabLlamaConfig) -> LinearNorm:
    """From RMSNorm to RepBN, which starts as the map to zero."""
    size, eps = config.hidden_size, config.rms_norm_eps
    return LinearNorm(
        LlamaRMSNorm(size, eps=eps),
        RepBatchNorm(size, eps=eps, zero_init=True),
        warm=config.norm_warmup_steps,
        step=config.norm_decay_steps,
        r0=config.norm_ratio,
        update_every=config.norm_update_every,
    )


class SlabLlamaDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: SlabLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.input_layernorm = progressive_norm(config)
        self.post_attention_layernorm = progressive_norm(config)

    def fuse(self) -> nn.Module:
        fold_into_followers(self, "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
        fold_into_followers(self, "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"))
        return self


class SlabLlamaPreTrainedModel(FusionMixin, LlamaPreTrainedModel):
    config: SlabLlamaConfig
    _no_split_modules = ["SlabLlamaDecoderLayer"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RepBatchNorm):
            module.reset_parameters()
        elif isinstance(module, LinearNorm):
            module.reset_counters()


class SlabLlamaModel(SlabLlamaPreTrainedModel, LlamaModel):
    """`LlamaModel` with PRepBN. Arguments and outputs are the same."""

    def __init__(self, config: SlabLlamaConfig):
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(SlabLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = progressive_norm(config)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As `LlamaModel`. In training the final norm's statistics leave out what a mask of shape (batch, length) leaves out."""
        if not self.training or attention_mask is None or attention_mask.ndim != 2:
            return super().forward(input_ids, attention_mask, **kwargs)
        hook = self.norm.register_forward_pre_hook(lambda norm, hidden_states: (*hidden_states, attention_mask))
        try:
            return super().forward(input_ids, attention_mask, **kwargs)
        finally:
            hook.remove()


class SlabLlamaForCausalLM(SlabLlamaPreTrainedModel, LlamaForCausalLM):
    """`LlamaForCausalLM` with PRepBN. Arguments, outputs and `generate` are the same."""

    def __init__(self, config: SlabLlamaConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = SlabLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


__all__ = ["SlabLlamaForCausalLM", "SlabLlamaModel", "SlabLlamaPreTrainedModel"]
