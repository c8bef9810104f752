"""Cases of `label_shift_adapter`: the adapter with its loss and stream, and the base methods, each told by what it is called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_ext.adapters.label_shift_adapter import LabelShiftAdapter, adapted_logits
from hf_ext.adapters.label_shift_adapter.distributions import (
    as_distribution,
    generalized_logit_adjusted_loss,
    imbalance_degree,
    mapping_vector,
    sampled_distribution,
)
from hf_ext.layers.iabn import InstanceAwareBatchNorm
from hf_ext.training.test_time_adaptation import LabelDistribution, Lame, TestTimeAdapter
from tests.goldens import call_arguments

EXPONENTS = (1.0, 0.0, -1.0, 0.5)


def run(case: dict[str, Any]) -> dict[str, Any]:
    arguments, call = case["arguments"], call_arguments(case)
    kinds = {"pixel_values": tent, "hidden_states": iabn, "stream_features": adapter, "logits": lame}
    return next(kind for name, kind in kinds.items() if name in call)(arguments, case["state_dict"], **call)


def tent(arguments: dict[str, Any], state: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> dict[str, Any]:
    model = ResNetForImageClassification(ResNetConfig(**arguments["config"]))
    model.load_state_dict(state)
    engine = TestTimeAdapter(model, "tent", **{name: value for name, value in arguments.items() if name != "config"})
    logits = torch.stack([engine(batch).logits for batch in pixel_values])
    return {"logits": logits} | {f"parameters.{name}": parameter for name, parameter in model.named_parameters()}


def iabn(arguments: dict[str, Any], state: dict[str, torch.Tensor], hidden_states: torch.Tensor) -> dict[str, Any]:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    options = {name: arguments[name] for name in ("eps", "momentum", "affine") if name in arguments}
    norm = kinds[hidden_states.ndim](arguments["num_channels"], **options)
    module = InstanceAwareBatchNorm(norm, arguments.get("k", 3.0), arguments.get("skip_thres", 1))
    module.load_state_dict(state)
    return {"output": module.eval()(hidden_states)}


def lame(
    arguments: dict[str, Any], state: dict[str, torch.Tensor], features: torch.Tensor, logits: torch.Tensor
) -> dict[str, Any]:
    method = Lame(**arguments)
    affinity = method.affinities(features)
    return {"affinity": affinity, "probabilities": method.refine(logits.softmax(-1), affinity)}


@torch.no_grad()
def adapter(
    arguments: dict[str, Any],
    state: dict[str, torch.Tensor],
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    source_distribution: torch.Tensor,
    target_distribution: torch.Tensor,
    stream_features: torch.Tensor,
) -> dict[str, Any]:
    sizes = ("num_labels", "feature_dim", "hidden_size", "predict_weight")
    network = LabelShiftAdapter(**{name: arguments[name] for name in sizes if name in arguments})
    network.load_state_dict(state)
    tau = arguments.get("tau", 1.0)
    source = as_distribution(source_distribution)
    mapping = mapping_vector(source)

    def answer(distribution: torch.Tensor) -> Any:
        return network(imbalance_degree(mapping, distribution))

    logits = adapted_logits(features, weight, bias, answer(target_distribution))
    running = LabelDistribution(source, torch.full_like(source, 1 / len(source)), arguments.get("momentum", 0.1))
    stream, distributions = [], []
    for batch in stream_features:
        stream.append(adapted_logits(batch, weight, bias, answer(running.current)))
        running.observe(stream[-1])
        distributions.append(running.current.clone())
    return {
        **answer(target_distribution)._asdict(),
        "mapping_vector": mapping,
        "imbalance_degree": imbalance_degree(mapping, target_distribution),
        "logits": logits,
        "loss": generalized_logit_adjusted_loss(logits, labels, source, target_distribution, tau),
        "stream_logits": torch.stack(stream),
        "stream_distribution": torch.stack(distributions),
        **{f"sampled_distribution.{i}": sampled_distribution(source, e) for i, e in enumerate(EXPONENTS)},
    }
