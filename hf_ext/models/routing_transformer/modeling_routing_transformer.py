"""Routing Transformer: a decoder some of whose heads attend to nearby blocks, the others inside clusters that online k-means finds.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", arXiv 2003.05997.
Reference: google-research/google-research, `routing_transformer/` (Tensor2Tensor).

On purpose different from the reference:
- `input_ids` is the sequence that the reference shifts inside: it starts with id 0, and logits at t predict the token after t;
- any length works: blocks are padded inside, and a cluster takes at most as many positions as there are;
- padded tokens (`attention_mask` 0) have zero queries, keys and values, the reference's own sign of padding, and a text padded on
  the left is attended to as if it stood at the start, so that it is cut into blocks as alone;
- a prompt is read in one parallel pass; the steps after it choose among what was read so far, as the reference's `fast_decode` does.

What a cluster takes depends on all positions, so in a parallel pass logits at t depend a little on later tokens (the reference's own
property); generation does not.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.ops.routed_attention import (
    cluster_members,
    commitment_loss,
    kmeans_statistics,
    kmeans_update,
    normalize,
    similarity,
)
from hf_ext.ops.routed_attention.eager import attend, attend_at, attend_members, attend_members_last

from .configuration_routing_transformer import RoutingTransformerConfig

STRIDED_DECAY = 0.99  # the reference does not hand its `decay` on to the strided routing heads
STRIDED_BETA = 1e-4  # nor its `beta`
IGNORED_LABEL = 0  # of the reference: padding carries no loss


@dataclass
class RoutingTransformerModelOutput(BaseModelOutputWithPast):
    r"""
    aux_loss (`torch.FloatTensor` of shape `(batch,)`): the clustering loss of each text, weighted, of all layers.
    """

    aux_loss: torch.FloatTensor | None = None


@dataclass
class RoutingTransformerCausalLMOutput(CausalLMOutputWithPast):
    r"""
    aux_loss (`torch.FloatTensor` of shape `(1,)`): the clustering loss, weighted, of all layers; part of `loss`.
    """

    aux_loss: torch.FloatTensor | None = None


@dataclass
class Places:
    """Where the tokens stand, for every layer: what padding there is, and whether this is a parallel pass or a step after others.

    Attributes:
        positions: (batch, tokens) of all tokens, those of a cache included, padding not counted.
        hidden: (batch, tokens), True at padding; None where there is none.
        parallel: no tokens went before.
    """

    positions: torch.Tensor
    hidden: torch.Tensor | None
    parallel: bool

    @property
    def order(self) -> torch.Tensor | None:
        """(batch, tokens): real tokens first, in their order, as a text stands without padding"""
        return None if self.hidden is None else self.hidden.long().argsort(dim=1, stable=True)


def reorder(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """(B, H, L, D) by (B, L)"""
    return x.take_along_dim(order[:, None, :, None], 2)


class Heads(nn.Module):
    """Heads of one kind, with learned vectors for the distances -M ... M, added to keys and values (Shaw et al., arXiv 1803.02155).

    `forward` takes scaled q and k (batch, heads, tokens, channels) and v, and returns their results; in a decoding step, with places
    of all tokens, q holds the new ones and the others all.
    """

    def __init__(self, config: RoutingTransformerConfig, relative: bool):
        super().__init__()
        distances = 2 * config.max_relative_position + 1
        for name, width in (("relative_keys", config.key_width), ("relative_values", config.value_width)):
            table = nn.Parameter(torch.empty(distances, width // config.num_attention_heads)) if relative else None
            self.register_parameter(name, table)
        self.dropout = config.attention_dropout

    def tables(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.relative_keys, self.relative_values

    @property
    def rate(self) -> float:
        return self.dropout if self.training else 0.0


class LocalHeads(Heads):
    """A block of queries attends to its own block, causally, and to the `look_back` tokens before it."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__(config, config.local_relative)
        self.block_size, self.look_back = config.block_size, config.look_back

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        if positions is not None:
            return self.step(q, k, v, positions)
        length, size = q.shape[2], self.block_size
        missing = -length % size
        hidden = (v == 0).all(-1)
        memory = self.look_back + size
        q = F.pad(q, (0, 0, 0, missing)).unflatten(2, (-1, size))  # (B, H, blocks, size, D)
        k, v = (F.pad(x, (0, 0, self.look_back, missing)).unfold(2, memory, size).mT for x in (k, v))
        hidden = F.pad(hidden, (self.look_back, missing), value=True).unfold(2, memory, size).unsqueeze(3)
        causal = torch.ones(size, memory, dtype=torch.bool, device=q.device).triu(self.look_back + 1)
        return attend(q, k, v, hidden | causal, *self.tables(), self.rate).flatten(2, 3)[:, :, :length]

    def step(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The last queries (B, H, n, D) over all keys; positions (B, tokens)."""
        queries = positions[:, None, -q.shape[2] :, None]
        keys = positions[:, None, None]
        blocks = queries // self.block_size - keys // self.block_size
        hidden = (keys > queries) | (blocks > self.look_back // self.block_size)
        return attend_at(q, k, v, hidden | (v == 0).all(-1).unsqueeze(2), keys - queries, *self.tables())


class StridedHeads(Heads):
    """A query attends to the same place in its own and every earlier block."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__(config, config.strided_relative)
        self.block_size = config.block_size

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        if positions is not None:
            return self.step(q, k, v, positions)
        length, missing = q.shape[2], -q.shape[2] % self.block_size
        hidden = F.pad((v == 0).all(-1), (0, missing), value=True)
        q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, self.block_size)).transpose(2, 3) for x in (q, k, v))
        hidden = hidden.unflatten(2, (-1, self.block_size)).mT.unsqueeze(3)  # (B, H, size, 1, blocks)
        blocks = q.shape[3]
        causal = torch.ones(blocks, blocks, dtype=torch.bool, device=q.device).triu(1)
        o = attend(q, k, v, hidden | causal, *self.tables(), self.rate)
        return o.transpose(2, 3).flatten(2, 3)[:, :, :length]

    def step(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        distance = positions[:, None, None] - positions[:, None, -q.shape[2] :, None]
        hidden = (distance > 0) | (distance % self.block_size != 0) | (v == 0).all(-1).unsqueeze(2)
        return attend_at(q, k, v, hidden, distance // self.block_size, *self.tables())


class RoutingHeads(Heads):
    """Attention inside the clusters of learned centroids (section 4 of the paper), or of random hyperplanes (`hash_items`)."""

    def __init__(self, config: RoutingTransformerConfig, heads: int, strided: bool):
        super().__init__(config, config.strided_routing_relative if strided else config.routing_relative)
        channels = config.key_width // config.num_attention_heads
        self.window, self.num_clusters, self.strided = config.cluster_window, config.num_clusters, strided
        self.share_qk = config.share_qk and not strided
        self.hash_items = config.hash_items and not strided
        self.decay = STRIDED_DECAY if strided else config.ema_decay
        self.beta = STRIDED_BETA if strided else config.commitment_weight
        self.ema = config.ema and not self.hash_items
        means = torch.empty(heads, self.num_clusters, channels)
        if self.hash_items:
            bits = self.num_clusters.bit_length() - 1
            self.register_buffer("projections", torch.empty(heads, bits, channels))
        elif self.ema:
            self.register_buffer("means", means)
            self.register_buffer("ema_count", torch.empty(heads, self.num_clusters))
            self.register_buffer("ema_means", torch.empty_like(means))
        else:
            self.means = nn.Parameter(means)

    def centroids(self) -> torch.Tensor | None:
        """What a pass in training routes by: a copy, since the averages move on before gradient checkpointing repeats the pass."""
        return self.means.clone() if self.training and self.ema else None

    def affinity(self, items: torch.Tensor, means: torch.Tensor | None) -> torch.Tensor:
        """How much each token belongs to each cluster: (B, H, tokens, clusters)"""
        if means is not None:
            return similarity(items, means)
        bits = (items @ self.projections.to(items.dtype).mT > 0).long()
        bucket = (bits << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)
        return F.one_hot(bucket, self.num_clusters).to(items.dtype)

    def route(
        self, q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor | None, means: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Normalised items (of queries and keys, once where shared), their affinities, and the positions that clusters take."""
        items = [normalize(x) for x in ((q,) if self.share_qk else (q, k))]
        affinities = [self.affinity(x, means) for x in items]
        window = min(self.window, q.shape[2])
        members = [cluster_members(affinity, window, self.strided, hidden) for affinity in affinities]
        return items, affinities, members

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        hidden: torch.Tensor | None = None,
        means: torch.Tensor | None = None,
        new: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """The result, the clustering loss (B,), and in training what the moving averages take up.

        `hidden` (B, tokens) is True at padding; `means` are the centroids to route by, the present ones when None. In a decoding step the
        results are those of the `new` last tokens, and q holds all of them too.
        """
        if means is None and not self.hash_items:
            means = self.means
        if new is not None:
            return self.step(q, k, v, hidden, means, new), v.new_zeros(len(v)), None
        items, affinities, members = self.route(q, k, hidden, means)
        o = attend_members(items[0], items[-1], v, members[0], members[-1], True, *self.tables(), self.rate)
        if means is None:
            return o, v.new_zeros(len(v)), None
        nearest = [affinity.argmax(-1) for affinity in affinities]
        losses = [self.clustering_loss(*pair, means) for pair in zip(items, nearest)]
        loss = sum(losses) * (2 // len(losses))  # once for queries and once for keys, the same ones or not
        if not self.training or not self.ema:
            return o, loss, None
        statistics = [kmeans_statistics(*pair, self.num_clusters) for pair in zip(items, nearest)]
        return o, loss, tuple(torch.stack(part) for part in zip(*statistics))

    def clustering_loss(self, items: torch.Tensor, nearest: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        loss = self.beta * commitment_loss(items, means.detach(), nearest)
        return loss if self.ema else loss + commitment_loss(items.detach(), means, nearest)

    def step(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        hidden: torch.Tensor | None,
        means: torch.Tensor | None,
        new: int,
    ) -> torch.Tensor:
        items, _, members = self.route(q, k, hidden, means)
        return attend_members_last(items[0][:, :, -new:], items[-1], v, members[0], members[-1], *self.tables())

    @torch.no_grad()
    def update(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Moves the averages and centroids by the statistics of a pass, summed over all processes; queries first, then keys."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            counts, sums = counts.clone(), sums.clone()
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        for count, total in zip(counts, sums):
            means, ema_count, ema_means = kmeans_update(count, total, self.ema_count, self.ema_means, self.decay)
            self.means.copy_(means)
            self.ema_count.copy_(ema_count)
            self.ema_means.copy_(ema_means)


class RoutingAttention(nn.Module):
    """Heads of all kinds side by side: routing, strided routing, strided, local. Each head's result passes one matrix that all share."""

    def __init__(self, config: RoutingTransformerConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        routes = layer_idx >= config.first_routing_layer
        self.num_heads = config.num_attention_heads
        self.num_routing_heads = config.num_routing_heads if routes else 0
        self.num_strided_routing_heads = config.num_strided_routing_heads
        self.num_strided_heads = config.num_strided_heads
        self.key_channels = config.key_width // self.num_heads
        self.value_channels = config.value_width // self.num_heads
        self.share_qk = config.share_qk
        self.q_proj = nn.Linear(config.hidden_size, config.key_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.key_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.value_width, bias=False)
        self.routing = RoutingHeads(config, self.num_routing_heads, strided=False) if self.num_routing_heads else None
        self.strided_routing = (
            RoutingHeads(config, self.num_strided_routing_heads, strided=True)
            if self.num_strided_routing_heads
            else None
        )
        self.strided = StridedHeads(config) if self.num_strided_heads else None
        self.local = LocalHeads(config) if self.sizes[3] else None
        self.head_dense = nn.Linear(self.value_channels, self.value_channels, bias=False)
        self.o_proj = nn.Linear(config.value_width, config.hidden_size, bias=False)

    @property
    def sizes(self) -> list[int]:
        """Numbers of heads of each kind, in the order of the kinds."""
        first = (self.num_routing_heads, self.num_strided_routing_heads, self.num_strided_heads)
        return [*first, self.num_heads - sum(first)]

    @property
    def keeps_queries(self) -> bool:
        """Whether decoding has to know earlier queries, apart from keys that are queries."""
        return self.strided_routing is not None or (self.routing is not None and not self.share_qk)

    def centroids(self) -> list[torch.Tensor | None]:
        return [None if heads is None else heads.centroids() for heads in (self.routing, self.strided_routing)]

    def forward(
        self,
        hidden_states: torch.Tensor,
        places: Places,
        past_key_values: Cache | None = None,
        centroids: list[torch.Tensor | None] = (None, None),
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, ...] | None]]:
        """The layer's attention (batch, tokens, hidden_size), its clustering loss (batch,), and what its centroids learn."""
        new = hidden_states.shape[1]
        q = self.q_proj(hidden_states).unflatten(-1, (-1, self.key_channels)).transpose(1, 2) * self.key_channels**-0.5
        k = self.k_proj(hidden_states).unflatten(-1, (-1, self.key_channels)).transpose(1, 2)
        v = self.v_proj(hidden_states).unflatten(-1, (-1, self.value_channels)).transpose(1, 2)
        if places.hidden is not None:
            q, k, v = (x.masked_fill(places.hidden[:, None, -new:, None], 0.0) for x in (q, k, v))
        if self.share_qk:
            k = torch.cat((q[:, : self.num_routing_heads], k[:, self.num_routing_heads :]), 1)
        keys, values = k, v
        if past_key_values is not None:
            stored = torch.cat((v, q), -1) if self.keeps_queries else v
            keys, values = past_key_values.update(k, stored, self.layer_idx)
        if places.parallel:
            o, loss, statistics = self.attend(q, k, v, places, centroids)
        else:
            o, loss, statistics = self.step(q, keys, values, places), q.new_zeros(len(q)), []
        # one axis for tokens and heads: 8-bit linear layers take three axes and no more
        o = self.head_dense(o.transpose(1, 2).flatten(1, 2)).unflatten(1, (new, -1)).flatten(2)
        return self.o_proj(o), loss, statistics

    def attend(self, q, k, v, places, centroids):
        """All tokens at once; those of a padded text as if there were no padding."""
        order, hidden = places.order, places.hidden
        if order is not None:
            q, k, v = (reorder(x, order) for x in (q, k, v))
            hidden = hidden.take_along_dim(order, 1)
        parts = list(zip(*(x.split(self.sizes, 1) for x in (q, k, v))))
        outputs, loss, statistics = [], q.new_zeros(len(q)), []
        for heads, part, means in zip((self.routing, self.strided_routing), parts, centroids):
            if heads is not None:
                o, own_loss, own_statistics = heads(*part, hidden, means)
                outputs.append(o)
                loss = loss + own_loss
                statistics.append(own_statistics)
        outputs += [heads(*part) for heads, part in zip((self.strided, self.local), parts[2:]) if heads is not None]
        o = torch.cat(outputs, 1)
        return o if order is None else reorder(o, order.argsort(dim=1)), loss, statistics

    def step(self, q, keys, values, places):
        """New tokens after those of the cache; clusters choose among all that were read so far, as the reference's `fast_decode`."""
        new = q.shape[2]
        queries = keys
        if self.keeps_queries:
            values, queries = values.split((self.value_channels, self.key_channels), -1)
        parts = list(zip(*(x.split(self.sizes, 1) for x in (q, queries, keys, values))))
        outputs = [
            heads(*part[1:], places.hidden, new=new)[0]
            for heads, part in zip((self.routing, self.strided_routing), parts)
            if heads is not None
        ]
        outputs += [
            heads(part[0], *part[2:], places.positions)
            for heads, part in zip((self.strided, self.local), parts[2:])
            if heads is not None
        ]
        return torch.cat(outputs, 1)

    def update(self, statistics: list[tuple[torch.Tensor, ...] | None]) -> None:
        modules = [heads for heads in (self.routing, self.strided_routing) if heads is not None]
        for heads, own in zip(modules, statistics):
            if own is not None:
                heads.update(*own)


class RoutingMLP(nn.Module):
    """ "geglu": W3 (gelu(W1 x) * W2 x) without biases; "relu": W2 relu(W1 x) with them."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__()
        self.gated = config.hidden_act == "geglu"
        bias = not self.gated
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False) if self.gated else None
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(hidden_states)
        inner = F.gelu(self.gate_proj(hidden_states), approximate="tanh") * up if self.gated else F.relu(up)
        return self.down_proj(self.dropout(inner))


class Around(nn.Module):
    """What stands around a sublayer: "d" dropout, "a" the residual, "n" layer norm, in the order of `sequence`."""

    def __init__(self, config: RoutingTransformerConfig, sequence: str):
        super().__init__()
        self.sequence = "" if sequence == "none" else sequence
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if "n" in self.sequence else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        for letter in self.sequence:
            x = x + residual if letter == "a" else self.norm(x) if letter == "n" else self.dropout(x)
        return x


class RoutingTransformerLayer(GradientCheckpointingLayer):
    def __init__(self, config: RoutingTransformerConfig, layer_idx: int):
        super().__init__()
        before, after = config.layer_preprocess_sequence, config.layer_postprocess_sequence
        self.before_attention = Around(config, before)
        self.attention = RoutingAttention(config, layer_idx)
        self.after_attention = Around(config, after)
        self.before_mlp = Around(config, before)
        self.mlp = nn.Identity() if config.hidden_act == "none" else RoutingMLP(config)
        self.after_mlp = Around(config, after)

    def forward(self, hidden_states: torch.Tensor, **kwargs):
        attended, loss, statistics = self.attention(self.before_attention(hidden_states), **kwargs)
        hidden_states = self.after_attention(attended, hidden_states)
        hidden_states = self.after_mlp(self.mlp(self.before_mlp(hidden_states)), hidden_states)
        return hidden_states, loss, statistics


class RoutingTransformerEmbeddings(nn.Module):
    """Token embeddings, a dense layer to the model's width (also where both are equal), and sines and cosines where configured."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__()
        self.token_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.projection = nn.Linear(config.embedding_size, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.token_dropout, self.add_timing_signal = config.token_dropout, config.add_timing_signal

    def tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.training and self.token_dropout:
            input_ids = input_ids.masked_fill(
                torch.rand(input_ids.shape, device=input_ids.device) < self.token_dropout, 0
            )
        return self.token_embeddings(input_ids)

    def forward(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden_states = self.projection(self.dropout(embedded))
        return hidden_states + self.timing_signal(positions, hidden_states) if self.add_timing_signal else hidden_states

    @staticmethod
    def timing_signal(positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size): sines, then cosines, of timescales from 1 to 10,000"""
        timescales = like.shape[-1] // 2
        exponents = torch.arange(timescales, device=like.device, dtype=torch.float32) / max(timescales - 1, 1)
        angles = positions[..., None] * torch.exp(-math.log(1e4) * exponents)
        return F.pad(torch.cat((angles.sin(), angles.cos()), -1), (0, like.shape[-1] % 2)).to(like.dtype)


class RoutingTransformerPreTrainedModel(PreTrainedModel):
    config_class = RoutingTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RoutingTransformerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _input_embed_layer = "token_embeddings"
    _can_record_outputs = {"hidden_states": RoutingTransformerLayer}
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            self._scale_units(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Heads):
            for table in (table for table in module.tables() if table is not None):
                self._scale_units(table)
        if isinstance(module, RoutingHeads) and module.hash_items:
            flat = nn.init.orthogonal_(torch.empty_like(module.projections).flatten(0, 1))
            init.copy_(module.projections, flat.view_as(module.projections))
        elif isinstance(module, RoutingHeads):
            init.copy_(module.means, normalize(torch.randn_like(module.means)))
            if module.ema:
                init.zeros_(module.ema_count)
                init.copy_(module.ema_means, module.means)

    def _scale_units(self, weight: torch.Tensor) -> None:
        """Tensor2Tensor's uniform unit scaling, over the average of both widths."""
        bound = math.sqrt(6 * self.config.initializer_range / sum(weight.shape))
        init.uniform_(weight, -bound, bound)


class RoutingTransformerModel(RoutingTransformerPreTrainedModel):
    """The decoder without a head (arXiv 2003.05997): token ids (batch, tokens) to hidden states (batch, tokens, hidden_size)."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__(config)
        self.embeddings = RoutingTransformerEmbeddings(config)
        self.layers = nn.ModuleList([RoutingTransformerLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final = Around(config, config.layer_preprocess_sequence)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.token_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.token_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> RoutingTransformerModelOutput:
        r"""
        Args:
            input_ids (batch, tokens), or inputs_embeds (batch, tokens, embedding_size).
            attention_mask: (batch, tokens of the cache and new ones), 0 at padding, on either side.
            past_key_values: a cache of keys and values, for tokens that come after others.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.tokens(input_ids)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        places = self.places(inputs_embeds, attention_mask, past_key_values)
        hidden_states = self.dropout(self.embeddings(inputs_embeds, places.positions[:, -inputs_embeds.shape[1] :]))

        aux_loss, learned = inputs_embeds.new_zeros(len(inputs_embeds)), []
        for layer in self.layers:
            hidden_states, loss, statistics = layer(
                hidden_states, places=places, past_key_values=past_key_values, centroids=layer.attention.centroids()
            )
            aux_loss = aux_loss + loss
            learned.append(statistics)
        if self.training:
            for layer, statistics in zip(self.layers, learned):
                layer.attention.update(statistics)
        return RoutingTransformerModelOutput(
            last_hidden_state=self.final(hidden_states), past_key_values=past_key_values, aux_loss=aux_loss
        )

    @staticmethod
    def places(new: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None) -> Places:
        batch, tokens = new.shape[:2]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            positions = torch.arange(past + tokens, device=new.device).expand(batch, -1)
            return Places(positions, None, past == 0)
        if attention_mask.shape != (batch, past + tokens):
            raise ValueError(
                f"attention_mask must be (batch, tokens) = {(batch, past + tokens)}, those of the cache included; "
                f"got {tuple(attention_mask.shape)}"
            )
        real = attention_mask.to(new.device) != 0
        return Places((real.long().cumsum(1) - 1).clamp(min=0), ~real, past == 0)


class RoutingTransformerForCausalLM(RoutingTransformerPreTrainedModel, GenerationMixin):
    """The language model (arXiv 2003.05997): next-token logits (batch, tokens, vocab_size), with `labels` the loss."""

    def __init__(self, config: RoutingTransformerConfig):
        super().__init__(config)
        self.model = RoutingTransformerModel(config)
        factored = config.embedding_size != config.hidden_size
        self.head_projection = nn.Linear(config.hidden_size, config.embedding_size) if factored else None
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> RoutingTransformerCausalLMOutput:
        r"""
        Arguments as those of `RoutingTransformerModel`, and

        Args:
            labels: (batch, tokens) token ids, shifted inside; -100 and id 0 (the reference's padding) carry no loss. The loss is
                their mean cross entropy plus the clustering loss.
            logits_to_keep: positions to compute logits for: the last so many, 0 for all, or a tensor of indices.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if self.head_projection is not None:
            hidden_states = self.head_projection(hidden_states)
        logits = self.lm_head(hidden_states)
        loss, aux_loss = None, outputs.aux_loss.mean(0, keepdim=True)
        if labels is not None:
            labels = labels.masked_fill(labels == IGNORED_LABEL, -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            loss = loss + aux_loss.squeeze(0).to(loss.dtype)
        return RoutingTransformerCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            aux_loss=aux_loss,
        )


__all__ = ["RoutingTransformerForCausalLM", "RoutingTransformerModel", "RoutingTransformerPreTrainedModel"]
