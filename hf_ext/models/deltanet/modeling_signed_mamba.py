"""Mamba whose transitions have eigenvalues in [-1, 1]: upstream's model with a scan of its own.

Paper: "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv 2411.12537, section 4: the transition is
2 exp(dt A) - 1 instead of exp(dt A); what is written stays dt B x.
Reference: automl/unlocking_state_tracking, `xlstm/mamba/mamba.py` on mambapy.

Parameter names are those of Transformers' Mamba, so with `allow_neg_eigval=False` its checkpoints load unchanged. On purpose different:
- decoding uses the extended range too (in the authors' code a single step still computes exp(dt A));
- a padded token leaves the state as it is, and reading may go on from a cache with any number of tokens.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.models.mamba.modeling_mamba import (
    MambaBlock,
    MambaForCausalLM,
    MambaMixer,
    MambaModel,
    MambaPreTrainedModel,
    apply_mask_to_padding_states,
)

from hf_ext.ops.selective_scan import selective_scan

from .configuration_signed_mamba import SignedMambaConfig


class SignedMambaMixer(MambaMixer):
    """The token mixer: gated projection, causal convolution, selective scan."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache_params: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, tokens, hidden_size) to the same; `attention_mask` (batch, tokens) is 0 at padding."""
        tokens = hidden_states.shape[1]
        cache = None if cache_params is None else cache_params.layers[self.layer_idx]
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)

        x = x.mT
        if cache is not None:  # what the convolution reaches back to, then x
            x = cache.update_conv_state(x, conv_kernel_size=self.conv_kernel_size)
        reach = x.shape[-1]
        x = self.act(self.conv1d(x)[..., reach - tokens : reach]).mT

        dt, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)
        dt = nn.functional.softplus(self.dt_proj(dt).float())
        if attention_mask is not None:
            dt = dt * attention_mask.unsqueeze(-1)
        y, state = selective_scan(
            x,
            dt,
            -self.A_log.float().exp(),
            B,
            C,
            initial_state=None if cache is None else cache.recurrent_states[0],
            output_final_state=cache is not None,
            allow_neg_eigval=self.config.allow_neg_eigval,
        )
        if cache is not None:
            cache.update_recurrent_state(state)
        return self.out_proj((y + x * self.D) * self.act(gate))


class SignedMambaBlock(MambaBlock):
    def __init__(self, config: SignedMambaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mixer = SignedMambaMixer(config, layer_idx, initialize_mixer_weights=False)


class SignedMambaPreTrainedModel(MambaPreTrainedModel):
    config_class = SignedMambaConfig
    _no_split_modules = ["SignedMambaBlock"]


class SignedMambaModel(SignedMambaPreTrainedModel, MambaModel):
    """The decoder without a head (arXiv 2411.12537): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""

    def __init__(self, config: SignedMambaConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([SignedMambaBlock(config, index) for index in range(config.num_hidden_layers)])
        if not config.use_final_norm:
            self.norm_f = nn.Identity()
        self.post_init()


class SignedMambaForCausalLM(SignedMambaPreTrainedModel, MambaForCausalLM):
    """The language model (arXiv 2411.12537): next-token logits (batch, tokens, vocab_size); with `labels`, their mean cross entropy."""

    def __init__(self, config: SignedMambaConfig):
        super().__init__(config)
        self.backbone = SignedMambaModel(config)
        self.post_init()


__all__ = ["SignedMambaForCausalLM", "SignedMambaModel", "SignedMambaPreTrainedModel"]
