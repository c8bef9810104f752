"""Transformer classifiers that run layer by layer: the upstream classifier with its weights, taken at its parts.

A kind says where the parts are; a new one is a table entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from hf_ext.layers.inputs import check_images

from .configuration_dynn import MultiExitConfig
from .networks import Network, State


@dataclass(frozen=True)
class Kind:
    """A kind of classifier.

    Attributes:
        layers: where the base model keeps its layers.
        start: (base model, forward arguments) -> what enters the first layer. `mask` among the extras is the layers' attention mask.
        layer: (layer, state) -> hidden states.
        finish: (classifier, state) -> logits.
        pooling: which token the classifier reads.
    """

    layers: str
    start: Callable[..., State]
    layer: Callable[[nn.Module, State], torch.Tensor]
    finish: Callable[[PreTrainedModel, State], torch.Tensor]
    pooling: str = "first"


class TokenExit(nn.Module):
    """LayerNorm and a linear layer on one vector of the tokens. (B, C) -> (B, num_labels)"""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(hidden_states))


class EncoderNetwork(Network):
    """An upstream classifier of images or texts, whose layers are the blocks."""

    def __init__(self, config: MultiExitConfig):
        super().__init__()
        backbone_config = config.backbone_config
        if backbone_config.model_type not in KINDS:
            raise ValueError(
                f"Exits in an encoder are known for {', '.join(KINDS)}, not for {backbone_config.model_type!r}; "
                "a model with feature maps goes into the family 'backbone'"
            )
        self.kind = KINDS[backbone_config.model_type]
        images = config.model_type == MultiExitConfig.model_type
        auto_class = AutoModelForImageClassification if images else AutoModelForSequenceClassification
        # kinds with several classifiers, such as DeiT with and without a teacher, are told apart by the name
        classes = auto_class._model_mapping[type(backbone_config)]
        first = classes[0] if isinstance(classes, tuple) else classes
        backbone_config.architectures = backbone_config.architectures or [first.__name__]
        self.base = auto_class.from_config(backbone_config)
        self.pooling = config.exit_pooling or self.kind.pooling
        self.hidden_size = backbone_config.hidden_size

    @property
    def blocks(self) -> nn.ModuleList:
        return attrgetter(self.kind.layers)(self.base.base_model)

    def exit(self, block: int, num_labels: int) -> nn.Module:
        return TokenExit(self.hidden_size, num_labels)

    @property
    def input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def start(self, inputs: "torch.Tensor | Texts | None", **options: bool) -> State:
        return self.kind.start(self.base.base_model, inputs, **options)

    def run(self, block: int, state: State) -> State:
        return State(self.kind.layer(self.blocks[block], state), state.extras)

    def features(self, state: State) -> torch.Tensor:
        return POOLINGS[self.pooling](state)

    def finish(self, state: State) -> torch.Tensor:
        return self.kind.finish(self.base, state)

    def load_base(self, classifier: PreTrainedModel) -> None:
        self.base.load_state_dict(classifier.state_dict())


def first_token(state: State) -> torch.Tensor:
    return state.hidden_states[:, 0]


def last_token(state: State) -> torch.Tensor:
    """The last one that is no padding"""
    last = state.extras.get("last")
    if last is None:
        return state.hidden_states[:, -1]
    return state.hidden_states[torch.arange(len(last), device=last.device), last]


def mean_token(state: State) -> torch.Tensor:
    """Over all that are no padding"""
    real = state.extras.get("real")
    if real is None:
        return state.hidden_states.mean(1)
    weights = real.to(state.hidden_states.dtype).unsqueeze(-1)
    return (state.hidden_states * weights).sum(1) / weights.sum(1).clamp_min(1)


POOLINGS = {"first": first_token, "mean": mean_token, "last": last_token}


@dataclass
class Texts:
    """What a classifier of texts is given; everything (B, N), embeddings (B, N, C)."""

    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None

    def __post_init__(self):
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given")
        given, axes = (self.input_ids, 2) if self.inputs_embeds is None else (self.inputs_embeds, 3)
        if given.ndim != axes or 0 in given.shape:
            raise ValueError(f"A batch of texts has {axes} axes and something in it; the shape is {tuple(given.shape)}")

    def embeds(self, embedding: nn.Module) -> torch.Tensor:
        return embedding(self.input_ids) if self.inputs_embeds is None else self.inputs_embeds

    def positions(self, embeds: torch.Tensor) -> torch.Tensor:
        counted = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return counted if self.position_ids is None else self.position_ids

    def padding(self, pad: int | None) -> dict[str, torch.Tensor | None]:
        """`real` (B, N): which tokens count. `last` (B): the last of them, as upstream's classifiers of generators find it."""
        unpadded = None if self.input_ids is None or pad is None else self.input_ids != pad
        real = unpadded if self.attention_mask is None else self.attention_mask
        ending = real if unpadded is None else unpadded
        if ending is None:
            return {"real": None, "last": None}
        positions = torch.arange(ending.shape[1], device=ending.device)
        return {"real": real, "last": (positions * ending.int()).argmax(-1)}


def start_image(
    model: PreTrainedModel, pixel_values: torch.Tensor | None, interpolate_pos_encoding: bool = False
) -> State:
    check_images(pixel_values, model.config.num_channels)
    hidden_states = model.embeddings(pixel_values.to(model.dtype), interpolate_pos_encoding=interpolate_pos_encoding)
    return State(hidden_states, {"mask": None})


def start_bert(model: PreTrainedModel, texts: Texts) -> State:
    hidden_states = model.embeddings(
        input_ids=texts.input_ids,
        token_type_ids=texts.token_type_ids,
        position_ids=texts.position_ids,
        inputs_embeds=texts.inputs_embeds,
    )
    mask = create_bidirectional_mask(model.config, hidden_states, texts.attention_mask)
    return State(hidden_states, {"mask": mask} | texts.padding(model.config.pad_token_id))


def start_gpt2(model: PreTrainedModel, texts: Texts) -> State:
    embeds = texts.embeds(model.wte)
    hidden_states = embeds + model.wpe(texts.positions(embeds))
    if texts.token_type_ids is not None:
        hidden_states = hidden_states + model.wte(texts.token_type_ids)
    return State(model.drop(hidden_states), causal_extras(model, embeds, texts))


def start_llama(model: PreTrainedModel, texts: Texts) -> State:
    embeds = texts.embeds(model.embed_tokens)
    rotary = model.rotary_emb(embeds, position_ids=texts.positions(embeds))
    return State(embeds, {"rotary": rotary} | causal_extras(model, embeds, texts))


def causal_extras(model: PreTrainedModel, embeds: torch.Tensor, texts: Texts) -> dict[str, torch.Tensor | None]:
    mask = create_causal_mask(model.config, embeds, texts.attention_mask, None, texts.position_ids)
    return {"mask": mask} | texts.padding(model.config.pad_token_id)


def masked_layer(layer: nn.Module, state: State) -> torch.Tensor:
    return layer(state.hidden_states, state.extras["mask"])


def gpt2_layer(layer: nn.Module, state: State) -> torch.Tensor:
    return layer(state.hidden_states, None, state.extras["mask"])


def llama_layer(layer: nn.Module, state: State) -> torch.Tensor:
    return layer(state.hidden_states, attention_mask=state.extras["mask"], position_embeddings=state.extras["rotary"])


def finish_vit(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    return classifier.classifier(classifier.base_model.layernorm(first_token(state)))


def finish_deit(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    tokens = classifier.base_model.layernorm(state.hidden_states[:, :2])
    if hasattr(classifier, "classifier"):
        return classifier.classifier(tokens[:, 0])
    return (classifier.cls_classifier(tokens[:, 0]) + classifier.distillation_classifier(tokens[:, 1])) / 2


def finish_bert(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    return classifier.classifier(classifier.dropout(classifier.base_model.pooler(state.hidden_states)))


def finish_roberta(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    return classifier.classifier(state.hidden_states)


def finish_gpt2(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    return classifier.score(classifier.base_model.ln_f(last_token(state)))


def finish_llama(classifier: PreTrainedModel, state: State) -> torch.Tensor:
    return classifier.score(classifier.base_model.norm(last_token(state)))


LLAMA = Kind("layers", start_llama, llama_layer, finish_llama, pooling="last")
KINDS = {
    "vit": Kind("layers", start_image, masked_layer, finish_vit),
    "deit": Kind("layers", start_image, masked_layer, finish_deit),
    "bert": Kind("encoder.layer", start_bert, masked_layer, finish_bert),
    "roberta": Kind("encoder.layer", start_bert, masked_layer, finish_roberta),
    "gpt2": Kind("h", start_gpt2, gpt2_layer, finish_gpt2, pooling="last"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
}
