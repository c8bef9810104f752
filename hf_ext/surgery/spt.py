"""Fine-tuning GPT-2, OPT and Llama with sparse attention and routed feed-forward networks (SPT, arXiv 2312.10365).

    model = apply_spt(AutoModelForCausalLM.from_pretrained("facebook/opt-125m"))
    model = get_peft_model(model, spt_lora_config(model, r=16))
    Trainer(model, ..., callbacks=[SPTCallback(warmup_steps=100, pq_every=20)]).train()
    model.save_pretrained(folder)                   # LoRA, routers, codebooks and norms alone

Reference: ytgui/SPT-proto (Apache-2.0). On purpose otherwise than there: the chosen keys are the exact top ones; heads keep their places
in the output of attention, which the reference scrambles; padding is never attended to; decoding with a cache is sparse as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_ext.layers.sparsified import PositionTable, ProductQuantizer, RoutedFeedForward
from hf_ext.ops.sparse_attention.interface import SparseSettings

from . import Recipe, apply

IMPLEMENTATION = "spt_sparse"


@dataclass(frozen=True)
class Layout:
    """Where a family keeps what SPT changes: `up`, `gate` and `down` are seen from the layer, the routed network replaces `owner`."""

    layers: str
    attention: str
    owner: str
    up: str
    down: str
    activation: str
    projections: tuple[str, ...]
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    gate: str | None = None


LAYOUTS = {
    "gpt2": Layout(
        layers="h",
        attention="attn",
        owner="mlp.c_fc",
        up="mlp.c_fc",
        down="mlp.c_proj",
        activation="mlp.act",
        projections=("c_attn", "attn.c_proj"),
        embeddings=("wte", "wpe"),
        norms=("ln_1", "ln_2", "ln_f"),
    ),
    "opt": Layout(
        layers="decoder.layers",
        attention="self_attn",
        owner="fc1",
        up="fc1",
        down="fc2",
        activation="activation_fn",
        projections=("q_proj", "k_proj", "v_proj", "out_proj"),
        embeddings=("embed_tokens", "embed_positions.table"),
        norms=("self_attn_layer_norm", "final_layer_norm"),
    ),
    "llama": Layout(
        layers="layers",
        attention="self_attn",
        owner="mlp",
        up="mlp.up_proj",
        gate="mlp.gate_proj",
        down="mlp.down_proj",
        activation="mlp.act_fn",
        projections=("q_proj", "k_proj", "v_proj", "o_proj"),
        embeddings=("embed_tokens",),
        norms=("input_layernorm", "post_attention_layernorm", "model.norm"),
    ),
}


def layout_of(model: Any) -> Layout:
    """The layout of a model, changed already or not; a ValueError that lists the known ones otherwise."""
    model_type = model.config.model_type.removeprefix("surgical_")
    if model_type not in LAYOUTS:
        raise ValueError(f"SPT is not known for the model type '{model_type}'; it is for {', '.join(LAYOUTS)}")
    return LAYOUTS[model_type]


@dataclass
class SPT(Recipe):
    """Codebooks in every attention, and a router before every feed-forward network.

    Args:
        d_codeword: width of a subspace, a divisor of the channels of a head.
        n_codewords: codewords for each subspace.
        sparse_coeff: a query attends to tokens // sparse_coeff keys, at least one.
        n_blocks: blocks of a feed-forward network, a divisor of its hidden size.
        active_blocks: blocks for each token; half of them when None.
        aux_weight: weight of the quantizers' losses, summed over layers, in the model's loss.
        logit_clamp: scaled attention scores are clamped to +- this.

    Raises:
        ValueError: naming the field, its value and what is allowed, when the model is changed.
    """

    name = "spt"
    d_codeword: int = 8
    n_codewords: int = 16
    sparse_coeff: int = 8
    n_blocks: int = 4
    active_blocks: int | None = None
    aux_weight: float = 1e-2
    logit_clamp: float = 10.0

    def rebuild(self, model: Any) -> None:
        layout = layout_of(model)
        settings = SparseSettings(self.sparse_coeff, self.logit_clamp)
        attentions = []
        for layer in model.base_model.get_submodule(layout.layers):
            attention = layer.get_submodule(layout.attention)
            weight = next(attention.parameters())
            quantizer = ProductQuantizer(attention.head_dim, self.d_codeword, self.n_codewords)
            attention.quantizer = quantizer.to(weight.device, weight.dtype)
            attention.spt, attention.pq_loss = settings, None
            attentions.append(attention)
            self._route(layer, layout)
        for name, module in list(model.named_modules()):
            if type(module).__name__ == "OPTLearnedPositionalEmbedding":
                model.set_submodule(name, PositionTable(module))
        model.set_attn_implementation(IMPLEMENTATION)
        if model is not model.base_model:
            model.loss_function = LossWithCodes(model.loss_function, attentions, self.aux_weight)

    def _route(self, layer: nn.Module, layout: Layout) -> None:
        parts = {name: layer.get_submodule(path) for name, path in self._linears(layout).items()}
        activation = layer.get_submodule(layout.activation)
        active = max(1, self.n_blocks // 2) if self.active_blocks is None else self.active_blocks
        gate = parts.get("gate")
        routed = RoutedFeedForward(parts["up"], parts["down"], gate, activation, self.n_blocks, active)
        layer.set_submodule(layout.owner, routed.train(layer.training))
        if layout.owner == layout.up:  # the host goes on to call the activation and the second layer
            for path in (layout.activation, layout.down):
                layer.set_submodule(path, nn.Identity())

    @staticmethod
    def _linears(layout: Layout) -> dict[str, str]:
        return {name: path for name in ("up", "gate", "down") if (path := getattr(layout, name))}


class LossWithCodes:
    """A model's loss function, and the quantizers' losses that the forward pass left at its attentions."""

    def __init__(self, loss_function: Any, attentions: list[nn.Module], weight: float):
        self.loss_function, self.attentions, self.weight = loss_function, attentions, weight

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = self.loss_function(*args, **kwargs)
        for attention in self.attentions:
            if attention.pq_loss is not None and attention.training:
                loss = loss + self.weight * attention.pq_loss.to(loss.device)
            attention.pq_loss = None
        return loss


def apply_spt(model: Any, **fields: Any) -> Any:
    """The model as a `Surgical<Base>` with SPT; the given one stays as it is and shares its tensors. `fields` are those of `SPT`.

    Raises:
        ValueError: a model other than GPT-2, OPT or Llama, or fields that do not fit it.
    """
    return apply(model, SPT(**fields))


def spt_lora_config(model: Any, r: int = 16, **fields: Any) -> LoraConfig:
    """PEFT's configuration for a model of `apply_spt`: LoRA of scale 1 on every linear layer and embedding; routers, codebooks and norms
    train as they are. `fields` are those of `LoraConfig` and take precedence."""
    layout = layout_of(model)
    if not any(isinstance(module, ProductQuantizer) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no codebooks; give it to `apply_spt` first")
    feed_forward = ("up", "down", *(("gate",) if layout.gate else ()))
    defaults = {
        "r": r,
        "lora_alpha": r,
        "target_modules": [*layout.projections, *feed_forward, *layout.embeddings, "lm_head"],
        "modules_to_save": ["router", "quantizer", *layout.norms],
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": "gpt2" in model.config.model_type,
    }
    return LoraConfig(**defaults | fields)


class SPTCallback(TrainerCallback):
    """For a `Trainer`: codebooks warm up under dense attention first, and their loss is evaluated now and then.

    It follows the step's number, so an interrupted training goes on where it was.

    Args:
        warmup_steps: steps with dense attention in the beginning.
        pq_every: steps between evaluations of the quantizers' loss (the paper finds 20 enough).

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(self, warmup_steps: int = 0, pq_every: int = 1):
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} must be at least 0")
        if pq_every < 1:
            raise ValueError(f"pq_every={pq_every} must be at least 1")
        self.warmup_steps, self.pq_every = warmup_steps, pq_every

    def on_step_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        for settings in settings_of(model):
            settings.dense = state.global_step < self.warmup_steps
            settings.learn_codes = state.global_step % self.pq_every == 0

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for settings in settings_of(model):
            settings.dense, settings.learn_codes = False, True


def settings_of(model: nn.Module) -> list[SparseSettings]:
    """The settings of sparse attention in a model, each once."""
    found = {id(m.spt): m.spt for m in model.modules() if isinstance(getattr(m, "spt", None), SparseSettings)}
    return list(found.values())


__all__ = ["LAYOUTS", "SPT", "SPTCallback", "apply_spt", "settings_of", "spt_lora_config"]
