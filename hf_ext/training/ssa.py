"""Training with stochastically subsampled self-attention (SSA), and the ensemble of the sub-networks so trained (arXiv 2306.01705).

    use_ssa(model, ratio=4)
    Trainer(model, ..., callbacks=[SSACallback()]).train()      # the last tenth attends to everything
    ssa_ensemble(model, inputs, n_samples=8).logits             # the mean of 8 subsampled passes

Works with every model whose attention goes through Transformers' `AttentionInterface`. Nothing is added to its weights.
The authors published no code; this is sections 4 and 5 of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput

from hf_ext.ops.subsampled_attention import SSAConfig

IMPLEMENTATION = "ssa"


def use_ssa(model: PreTrainedModel, settings: SSAConfig | None = None, **fields: Any) -> PreTrainedModel:
    """Makes every self-attention of `model` a subsampled one while it trains; in eval mode it stays dense.

    The settings are saved with the model, as `config.ssa`. One layer gets its own by `attention_module.ssa = SSAConfig(...)`.

    Args:
        model: changed in place, and returned.
        settings: or `fields` of an `SSAConfig`, such as kind="local1d", window_size=64.

    Raises:
        ValueError: both are given, a field is impossible, or the model's attention cannot be set.
    """
    if settings is not None and fields:
        raise ValueError(f"Give the settings or fields of them, not both: {', '.join(fields)}")
    settings = settings or SSAConfig(**fields)
    set_implementation(model, IMPLEMENTATION)
    for config in configurations(model):
        config.ssa = asdict(settings)
    return model


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """`set_attn_implementation`, and a `ValueError` where upstream only warns that the class ignores it."""
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError(
            f"The attention of {type(model).__name__} does not go through Transformers' AttentionInterface"
        )


def configurations(model: torch.nn.Module) -> list[Any]:
    """The configurations of a model and of the models inside it, each once."""
    found = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return list(found.values())


class SSACallback(TrainerCallback):
    """For a `Trainer`: subsampled attention first, dense fine-tuning at the end, which closes the gap between the two.

    The schedule follows the step's number, so an interrupted training goes on where it was.

    Args:
        finetune_fraction: the last share of the steps that runs dense; 0 to subsample to the end.
        dense: the `attn_implementation` of that part, and what the model is left with.
    """

    def __init__(self, finetune_fraction: float = 0.1, dense: str = "sdpa"):
        if not 0 <= finetune_fraction <= 1:
            raise ValueError(f"finetune_fraction={finetune_fraction} must be between 0 and 1")
        self.finetune_fraction, self.dense = finetune_fraction, dense

    def on_step_begin(
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        sampled = state.global_step < round((1 - self.finetune_fraction) * state.max_steps)
        wanted = IMPLEMENTATION if sampled else self.dense
        if model.config._attn_implementation != wanted:
            set_implementation(model, wanted)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        set_implementation(model, self.dense)


@contextmanager
def subsampling(model: PreTrainedModel) -> Iterator[None]:
    """Inside, every pass of `model` is subsampled, in eval mode too; settings and attention are as before afterwards."""
    configs = configurations(model)
    layers = [module for module in model.modules() if isinstance(getattr(module, "ssa", None), SSAConfig)]
    before = [(config._attn_implementation, getattr(config, "ssa", None)) for config in configs]
    set_implementation(model, IMPLEMENTATION)
    try:
        for config in configs:
            config.ssa = {**(getattr(config, "ssa", None) or {}), "when": "always"}
        moments = [layer.ssa.when for layer in layers]
        for layer in layers:
            layer.ssa.when = "always"
        yield
    finally:
        for config, (implementation, settings) in zip(configs, before):
            config._attn_implementation_internal = implementation
            if settings is None:
                del config.ssa
            else:
                config.ssa = settings
        for layer, when in zip(layers, moments):
            layer.ssa.when = when


@torch.no_grad()
def ssa_ensemble(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    n_samples: int = 8,
    average: Literal["probabilities", "predictions"] | None = None,
    seed: int | None = None,
) -> ModelOutput:
    """The mean of `n_samples` subsampled passes, each with draws of its own (the paper's self-ensemble).

    Args:
        model: with SSA settings in its configuration (`use_ssa`), or the paper's defaults. Runs in eval mode.
        inputs: its forward arguments.
        n_samples: the paper's gains grow with it up to some tens.
        average: "probabilities", softmax over the last axis of `logits`, or "predictions", the logits themselves; None looks at
            `config.problem_type`: "regression" averages predictions, anything else probabilities.
        seed: of the draws; torch's global generator is then left as it was.

    Returns:
        The output of one pass whose `logits` are the mean: log probabilities, so that argmax and cross entropy are the ensemble's,
        or mean predictions. `loss` is None.

    Raises:
        ValueError: no passes, an unknown `average`, or a model without `logits`.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least 1")
    if average is None:
        average = "predictions" if getattr(model.config, "problem_type", None) == "regression" else "probabilities"
    if average not in ("probabilities", "predictions"):
        raise ValueError(f"average={average!r} is not one of 'probabilities', 'predictions'")
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=seed is not None), subsampling(model.eval()):
        if seed is not None:
            torch.manual_seed(seed)
        total = None
        for _ in range(n_samples):
            outputs = model(**{**inputs, "return_dict": True})
            logits = getattr(outputs, "logits", None)
            if logits is None:
                raise ValueError(f"{type(model).__name__} returns no `logits` to average")
            values = logits.float().softmax(-1) if average == "probabilities" else logits
            total = values if total is None else total + values
    model.train(training)
    mean = total / n_samples
    outputs["logits"] = mean.log().to(logits.dtype) if average == "probabilities" else mean
    outputs["loss"] = None
    return outputs


__all__ = ["SSACallback", "SSAConfig", "ssa_ensemble", "subsampling", "use_ssa"]
