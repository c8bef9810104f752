"""Label shift adapter (arXiv 2308.08810): a small network that is told how imbalanced the labels are and answers with the
parameters of a frozen classifier's last layer that are right for it.

No code by the authors is known. What their paper's abstract and summaries leave open is defined here: the mapping of a distribution to a
scalar, the form of the adjustment and the distributions that training draws (see `distributions`).

The adapter is trained on source data (`hf_ext.training.label_shift`, or `Trainer` on the whole model after `freeze_base`). At test time
`hf_ext.training.test_time_adaptation.TestTimeAdapter` estimates the distribution and keeps it in the buffer `label_distribution`.
"""

from copy import deepcopy
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from hf_ext.layers.classifiers import LinearClassifier, find_classifiers

from .configuration_label_shift_adapter import LabelShiftAdapterConfig
from .distributions import (
    as_distribution,
    generalized_logit_adjusted_loss,
    imbalance_degree,
    is_balanced,
    mapping_of_balanced,
    mapping_vector,
    sampled_distribution,
    training_distribution,
)

AUTO_CLASSES = (AutoModelForImageClassification, AutoModelForSequenceClassification, AutoModelForAudioClassification)
MOST_PREDICTED_WEIGHTS = 65_536


class Adjustment(NamedTuple):
    """What the adapter answers: two vectors for the D features, two for the K classes and, where it predicts weights, (K, D)."""

    feature_scale: torch.Tensor
    feature_shift: torch.Tensor
    class_scale: torch.Tensor
    class_bias: torch.Tensor
    weight_delta: torch.Tensor | None = None


class LabelShiftAdapter(nn.Module):
    """From the degree of imbalance, one hidden layer, to an `Adjustment`. It starts as the identity.

    Args:
        num_labels, feature_dim: of the classifier, K and D.
        predict_weight: whether the answer holds a (K, D) difference of the weights; None: where K * D <= 65536.
    """

    def __init__(self, num_labels: int, feature_dim: int, hidden_size: int = 100, predict_weight: bool | None = None):
        super().__init__()
        if predict_weight is None:
            predict_weight = num_labels * feature_dim <= MOST_PREDICTED_WEIGHTS
        self.num_labels, self.feature_dim, self.predict_weight = num_labels, feature_dim, predict_weight
        self.sizes = [feature_dim] * 2 + [num_labels] * 2 + [num_labels * feature_dim] * predict_weight
        self.fc1 = nn.Linear(1, hidden_size)
        self.fc2 = nn.Linear(hidden_size, sum(self.sizes))
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, imbalance_degree: torch.Tensor) -> Adjustment:
        """The answer to a scalar in [-1, 1]."""
        hidden = self.fc1(imbalance_degree.to(self.fc1.bias.dtype).reshape(1, 1)).relu()
        scale, shift, class_scale, bias, *delta = self.fc2(hidden)[0].split(self.sizes)
        delta = delta[0].view(self.num_labels, self.feature_dim) if delta else None
        return Adjustment(1 + scale, shift, 1 + class_scale, bias, delta)


def adapted_logits(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, adjustment: Adjustment
) -> torch.Tensor:
    """class_scale ((features feature_scale + feature_shift) (weight + weight_delta)^T) + bias + class_bias

    (..., D), (K, D), (K,) -> (..., K)
    """
    scale, shift, class_scale, class_bias, delta = (
        None if part is None else part.to(device=features.device, dtype=features.dtype) for part in adjustment
    )
    weight = weight if delta is None else weight + delta
    class_bias = class_bias if bias is None else bias + class_bias
    return torch.addcmul(class_bias, class_scale, nn.functional.linear(features * scale + shift, weight))


class AdaptedClassifier(LinearClassifier):
    """A classifier's last linear layer, with its own parameters under their own names, that follows an `Adjustment` while it has one."""

    adjustment: Adjustment | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.adjustment is None:
            return super().forward(features)
        return adapted_logits(features, self.weight, self.bias, self.adjustment)


class LabelShiftAdapterPreTrainedModel(PreTrainedModel):
    """The classifier `base` and its `adapter`, in one checkpoint.

    The classifier may be of any kind that Transformers' three Auto classes for classification know; a class prefers its own.

    Buffers, (K,) each:
        source_distribution: of the labels that the base and the adapter were trained on; equal until `set_source_distribution`.
        mapping_vector: what a distribution is multiplied with to give the degree of imbalance.
        label_distribution: the running estimate at test time, so that a stream can go on where it stopped; equal at first.
    """

    config_class = LabelShiftAdapterConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules = ["adapter"]
    auto_class: type = AUTO_CLASSES[0]
    output_class: type[ModelOutput] = ImageClassifierOutput

    def __init__(self, config: LabelShiftAdapterConfig):
        super().__init__(config)
        self.base = classifier_class(config.base_config, self.auto_class)(config.base_config)
        self.classifier_names = find_classifiers(self.base)
        for name in self.classifier_names:
            self.base.set_submodule(name, AdaptedClassifier(self.base.get_submodule(name)))
        num_labels = config.num_labels
        widths = [head.in_features for head in self.classifiers]
        self.adapter = LabelShiftAdapter(num_labels, sum(widths), config.hidden_size, config.predict_weight)
        self.base_is_frozen = False
        # in float32 whatever the model is loaded in
        uniform = torch.full((num_labels,), 1 / num_labels, dtype=torch.float32)
        self.register_buffer("source_distribution", uniform)
        self.register_buffer("mapping_vector", mapping_of_balanced(num_labels))
        self.register_buffer("label_distribution", uniform.clone())
        self.post_init()

    @classmethod
    def from_base(
        cls,
        base: str | PathLike | PreTrainedModel,
        source_distribution: torch.Tensor | None = None,
        **fields: Any,
    ) -> "LabelShiftAdapterPreTrainedModel":
        """A trained classifier with an adapter that does nothing yet.

        Args:
            base: folder or Hub name of a checkpoint, or the model, which is copied.
            source_distribution: as for `set_source_distribution`.
            fields: of the configuration.

        Raises:
            ValueError: the base is quantized or ends in no linear layer; or as the configuration and `set_source_distribution`.
        """
        if not isinstance(base, PreTrainedModel):
            base = cls.auto_class.from_pretrained(base)
        if getattr(base, "is_quantized", False):
            raise ValueError(
                "Take the adapter's base in full precision; the whole can be loaded in 8-bit once it is saved"
            )
        model = cls(LabelShiftAdapterConfig(base_config=deepcopy(base.config), **fields))
        model.base.load_state_dict(base.state_dict())
        model.to(device=base.device, dtype=base.dtype)
        if source_distribution is not None:
            model.set_source_distribution(source_distribution)
        return model.eval()

    @property
    def classifiers(self) -> list[AdaptedClassifier]:
        return [self.base.get_submodule(name) for name in self.classifier_names]

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LabelShiftAdapter):
            init.kaiming_uniform_(module.fc1.weight, a=5**0.5)
            init.uniform_(module.fc1.bias, -1, 1)
            init.zeros_(module.fc2.weight)
            init.zeros_(module.fc2.bias)
        elif isinstance(module, LabelShiftAdapterPreTrainedModel):
            for name in ("source_distribution", "label_distribution"):
                init.constant_(getattr(module, name), 1 / self.config.num_labels)
            init.copy_(module.mapping_vector, mapping_of_balanced(self.config.num_labels))

    def set_source_distribution(self, counts: torch.Tensor) -> None:
        """Tells how the labels of the source are distributed, and orders the classes by it; best before the adapter is trained.

        Args:
            counts: (K,), how often each class occurs, or its share. Where no class is 1.1 times as frequent as another, the order
                is a random one, always the same.
        """
        source = as_distribution(counts, self.config.num_labels)
        balanced = is_balanced(source)
        self.source_distribution.copy_(source)
        self.mapping_vector.copy_(mapping_of_balanced(source.numel()) if balanced else mapping_vector(source))

    def freeze_base(self) -> None:
        """Leaves only the adapter to train, and the base in eval mode from here on, whatever `train()` says."""
        self.base.requires_grad_(False)
        self.base_is_frozen = True
        self.base.eval()

    def train(self, mode: bool = True) -> "LabelShiftAdapterPreTrainedModel":
        super().train(mode)
        if self.base_is_frozen:
            self.base.eval()
        return self

    def draw_distribution(self) -> torch.Tensor:
        """(K,): one of the distributions that the adapter is trained for."""
        training = training_distribution(self.source_distribution.float(), self.mapping_vector.float())
        if self.config.exponents is None:
            exponent = 2 * torch.rand((), device=training.device) - 1
        else:
            exponents = training.new_tensor(self.config.exponents)
            exponent = exponents[torch.randint(len(exponents), (1,), device=training.device)]
        return sampled_distribution(training, exponent)

    def adjustments(self, label_distribution: torch.Tensor) -> list[Adjustment]:
        """The adapter's answer to a distribution (K,), cut into what each of the base's last layers needs."""
        whole = self.adapter(imbalance_degree(self.mapping_vector.float(), label_distribution.float()))
        widths = [head.in_features for head in self.classifiers]
        deltas = [None] * len(widths) if whole.weight_delta is None else whole.weight_delta.split(widths, 1)
        parts = zip(whole.feature_scale.split(widths), whole.feature_shift.split(widths), deltas)
        return [Adjustment(scale, shift, whole.class_scale, whole.class_bias, delta) for scale, shift, delta in parts]

    def _classify(
        self, labels: torch.Tensor | None, label_distribution: torch.Tensor | None, inputs: dict[str, Any]
    ) -> ModelOutput:
        """What the classes' `forward` do; they differ in the names of their inputs only."""
        if label_distribution is None:
            drawn = self.training and labels is not None
            label_distribution = self.draw_distribution() if drawn else self.label_distribution
        elif label_distribution.shape != self.label_distribution.shape:
            raise ValueError(
                f"`label_distribution` must have shape ({self.config.num_labels},), not {tuple(label_distribution.shape)}"
            )
        heads = self.classifiers
        try:
            for head, adjustment in zip(heads, self.adjustments(label_distribution)):
                head.adjustment = adjustment
            inputs = {name: value for name, value in inputs.items() if value is not None}
            outputs = self.base(**{**inputs, "return_dict": True})
        finally:
            for head in heads:
                head.adjustment = None
        loss = None
        if labels is not None:
            loss = generalized_logit_adjusted_loss(
                outputs.logits, labels, self.source_distribution, label_distribution, self.config.tau
            )
        return self.output_class(
            loss=loss,
            logits=outputs.logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


class LabelShiftAdapterForImageClassification(LabelShiftAdapterPreTrainedModel):
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_distribution: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: as the base takes them; `kwargs` are further arguments of the base.
            labels: (B,) classes, distributed as `source_distribution`.
            label_distribution: (K,) that the logits are for. Left out: in training with labels a drawn one, otherwise the buffer
                `label_distribution`.

        Returns:
            `logits` (B, K) and, with labels, `loss`: the cross-entropy of the logits taken back to the source's distribution.

        Raises:
            ValueError: `label_distribution` of another shape, or what the base finds wrong.
        """
        return self._classify(labels, label_distribution, {"pixel_values": pixel_values, **kwargs})


class LabelShiftAdapterForSequenceClassification(LabelShiftAdapterPreTrainedModel):
    main_input_name = "input_ids"
    input_modalities = ("text",)
    auto_class = AUTO_CLASSES[1]
    output_class = SequenceClassifierOutput

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_distribution: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """As `LabelShiftAdapterForImageClassification`, with a text's arguments."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._classify(labels, label_distribution, {**given, **kwargs})


class LabelShiftAdapterForAudioClassification(LabelShiftAdapterPreTrainedModel):
    main_input_name = "input_values"
    input_modalities = ("audio",)
    auto_class = AUTO_CLASSES[2]
    output_class = SequenceClassifierOutput

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_distribution: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """As `LabelShiftAdapterForImageClassification`, with the arguments of a sound: a base takes one of the first two."""
        given = {"input_values": input_values, "input_features": input_features, "attention_mask": attention_mask}
        return self._classify(labels, label_distribution, {**given, **kwargs})


def classifier_class(config: PreTrainedConfig, preferred: type) -> type[PreTrainedModel]:
    """The class of the classifier that `config` describes: the preferred Auto class's, or else that of another one that knows it."""
    for auto_class in (preferred, *AUTO_CLASSES):
        if type(config) in auto_class._model_mapping:
            found = auto_class._model_mapping[type(config)]
            classes = found if isinstance(found, (list, tuple)) else [found]
            named = [model for model in classes if model.__name__ in (config.architectures or ())]
            return (named or classes)[0]
    raise ValueError(f"`base_config` is of type '{config.model_type}', of which there is no classifier")


__all__ = [
    "Adjustment",
    "LabelShiftAdapter",
    "LabelShiftAdapterForAudioClassification",
    "LabelShiftAdapterForImageClassification",
    "LabelShiftAdapterForSequenceClassification",
    "LabelShiftAdapterPreTrainedModel",
    "adapted_logits",
]
