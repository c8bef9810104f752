"""Multi-exit classifiers: networks with internal classifiers, at which samples leave once one is confident.

Paper: "Dynamic Neural Network is All You Need: Understanding the Robustness of Dynamic Mechanisms in Neural Networks" (arXiv 2308.08709),
whose authors published no code; its attacks and measurements are in `hf_ext.robustness`. The networks and their training are those of
Shallow-Deep Networks (arXiv 1810.07052, yigitcankaya/Shallow-Deep-Networks @ a5564462, MIT) as DeepSloth (arXiv 2010.02432,
Sanghyun-Hong/DeepSloth @ c4abaf9c, MIT) has them.

Where the port differs on purpose:
- a batch is served together, in "dynamic" mode too: samples that leave are taken out of it (the references serve one sample at a time);
- exits also go onto any `AutoBackbone` and onto ViT, BERT, GPT-2 and Llama kinds of classifiers, with the weights they have (`from_base`);
- the weights of the exits' losses rise with every optimizer step instead of every epoch (`hf_ext.training.dynn`);
- images whose size is no multiple of the strides are served, where the references' sizes of the exits would be wrong.
"""

from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from hf_ext.layers.initialization import init_conv_as_torch

from .configuration_dynn import MultiExitConfig, MultiExitTextConfig
from .encoders import KINDS, EncoderNetwork, Texts
from .networks import NETWORKS, MapExit, Network, State

EXIT_MODES = ("all", "final", "dynamic")


@dataclass
class MultiExitOutput(ModelOutput):
    """
    Args:
        loss: of the classifiers that were computed, when labels are given.
        logits: (B, num_labels), the answer: the final classifier's, in "dynamic" mode that of the exit which each sample took.
        exit_logits: one (B, num_labels) for each exit, in "all" mode.
        exit_index: (B), which exit each sample took, in "dynamic" mode; the number of exits stands for the final classifier.
        confidence: (B), the largest softmax probability of `logits`, in "dynamic" mode.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: tuple[torch.Tensor, ...] | None = None
    exit_index: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


@dataclass
class Answers:
    """What each sample of a batch has been answered so far: (B, num_labels), (B), (B)."""

    logits: torch.Tensor
    exit_index: torch.Tensor
    confidence: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, exit_index: int) -> "Answers":
        index = torch.full((len(logits),), exit_index, device=logits.device)
        return cls(logits, index, logits.float().softmax(-1).amax(-1))

    def where(self, chosen: torch.Tensor, other: "Answers") -> "Answers":
        """`other`'s where `chosen` (B)."""
        return Answers(
            torch.where(chosen[:, None], other.logits, self.logits),
            torch.where(chosen, other.exit_index, self.exit_index),
            torch.where(chosen, other.confidence, self.confidence),
        )

    def put(self, places: torch.Tensor, other: "Answers") -> "Answers":
        """`other`'s at `places`."""
        return Answers(
            self.logits.index_copy(0, places, other.logits),
            self.exit_index.index_copy(0, places, other.exit_index),
            self.confidence.index_copy(0, places, other.confidence),
        )

    def select(self, index: torch.Tensor) -> "Answers":
        return Answers(self.logits[index], self.exit_index[index], self.confidence[index])


class MultiExitPreTrainedModel(PreTrainedModel):
    """What multi-exit classifiers of images and of texts share.

    `exit_loss_progress`, from 0 to 1, is how far the training is: the weights of the exits' losses grow with it
    (`hf_ext.training.dynn.ExitLossCallback` sets it).
    """

    config_class = MultiExitConfig
    base_model_prefix = "network"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["PlainBlock", "ResidualBlock", "MapExit", "TokenExit"]
    accepts_loss_kwargs = False

    def __init__(self, config: MultiExitConfig):
        super().__init__(config)
        self.network: Network = NETWORKS.get(config.family, EncoderNetwork)(config)
        self.exits = nn.ModuleDict(
            {
                str(block): self.network.exit(block, config.num_labels)
                for block, placed in enumerate(config.exits)
                if placed
            }
        )
        self.last_block = len(config.exits) - 1
        self.exit_loss_progress = 1.0
        if getattr(self.network, "checkpoints_itself", True) is False:
            self.gradient_checkpointing = False
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "MultiExitPreTrainedModel":
        """As upstream's, which makes every parameter it loads ask for a gradient; the frozen ones are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        if self.config.train_mode == "ic_only":
            self.network.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As SDN has it."""
        family = self.config.family
        if isinstance(module, nn.Linear) and family == "vgg16bn":
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and family in ("vgg16bn", "resnet56"):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            init_conv_as_torch(module)
        elif isinstance(module, MapExit) and module.kernel_size != 0:
            init.uniform_(module.alpha, 0, 1)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.network.input_embeddings

    def train(self, mode: bool = True) -> "MultiExitPreTrainedModel":
        super().train(mode)
        if self.config.train_mode == "ic_only":
            self.network.eval()
        return self

    def _classify(
        self,
        state: State,
        labels: torch.Tensor | None,
        exit_mode: str | None,
        threshold: float | None,
        fallback: str | None,
    ) -> MultiExitOutput:
        exit_mode = exit_mode or ("all" if self.training or labels is not None else "dynamic")
        if exit_mode not in EXIT_MODES:
            raise ValueError(f"`exit_mode` must be one of {', '.join(EXIT_MODES)}, not {exit_mode!r}")
        if exit_mode != "dynamic":
            exits, logits = self._all_exits(state) if exit_mode == "all" else ((), self._without_exits(state))
            loss = None if labels is None else self._loss(exits, logits, labels)
            return MultiExitOutput(loss=loss, logits=logits, exit_logits=exits or None)
        threshold = self.config.threshold if threshold is None else threshold
        most_confident = (fallback or self.config.fallback) == "most_confident"
        # what a batch holds after an exit is not known to a compiler: it gets a graph that computes all exits and picks
        serve = self._pick if torch.compiler.is_compiling() else self._leave
        answers = serve(state, threshold, most_confident)
        loss = None if labels is None else nn.functional.cross_entropy(answers.logits, labels)
        return MultiExitOutput(
            loss=loss, logits=answers.logits, exit_index=answers.exit_index, confidence=answers.confidence
        )

    def _run(self, block: int, state: State) -> State:
        if self.training and getattr(self, "gradient_checkpointing", False):
            return self._gradient_checkpointing_func(self.network.run, block, state)
        return self.network.run(block, state)

    def _without_exits(self, state: State) -> torch.Tensor:
        for block in range(self.last_block + 1):
            state = self._run(block, state)
        return self.network.finish(state)

    def _all_exits(self, state: State) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        logits = []
        for block in range(self.last_block + 1):
            state = self._run(block, state)
            if str(block) in self.exits:
                logits.append(self.exits[str(block)](self.network.features(state)))
        return tuple(logits), self.network.finish(state)

    def _leave(self, state: State, threshold: float, most_confident: bool) -> Answers:
        """Serves a batch whose samples leave it at the first exit that is confident about them."""
        answers = best = None
        places = torch.arange(len(state.hidden_states), device=state.hidden_states.device)
        index = 0
        for block in range(self.last_block + 1):
            state = self._run(block, state)
            if str(block) not in self.exits:
                continue
            here = Answers.of(self.exits[str(block)](self.network.features(state)), index)
            if most_confident:
                best = here if best is None else best.where(here.confidence > best.confidence, here)
            leaves = here.confidence >= threshold
            index += 1
            if not leaves.any():
                continue
            if answers is None:
                answers = here
            else:
                gone = leaves.nonzero().squeeze(1)
                answers = answers.put(places[gone], here.select(gone))
            if leaves.all():
                return answers
            stay = (~leaves).nonzero().squeeze(1)
            places, state = places[stay], state.select(stay)
            best = None if best is None else best.select(stay)
        here = Answers.of(self.network.finish(state), index)
        if most_confident:
            here = best.where(here.confidence > best.confidence, here)
        return here if answers is None else answers.put(places, here)

    def _pick(self, state: State, threshold: float, most_confident: bool) -> Answers:
        """The same, from all classifiers."""
        exits, logits = self._all_exits(state)
        *inner, answers = (Answers.of(x, index) for index, x in enumerate((*exits, logits)))
        if most_confident:
            for here in reversed(inner):
                answers = answers.where(here.confidence >= answers.confidence, here)
        for here in reversed(inner):
            answers = answers.where(here.confidence >= threshold, here)
        return answers

    def _loss(self, exits: tuple[torch.Tensor, ...], logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """SDN's objective, section 4.1 of arXiv 1810.07052; the exits' losses alone where only they are trained."""
        final = nn.functional.cross_entropy(logits, labels)
        if not exits:
            return final
        losses = torch.stack([nn.functional.cross_entropy(x, labels) for x in exits])
        if self.config.train_mode == "ic_only":
            return losses.sum()
        return (losses * losses.new_tensor(self.exit_loss_weights())).sum() + final

    def exit_loss_weights(self) -> list[float]:
        """The weight of each exit's loss at this point of the training."""
        return [min(most, 0.01 + self.exit_loss_progress * most) for most in self.config.largest_exit_loss_weights]

    @classmethod
    def from_base(
        cls, base: str | PathLike | PreTrainedModel, train_mode: str = "ic_only", **fields: Any
    ) -> "MultiExitPreTrainedModel":
        """An early-exit version of a trained classifier: its weights and its answers, and untrained exits.

        Args:
            base: a classifier, its folder or its name on the Hub. Images: ViT, DeiT, ResNet; texts: BERT, RoBERTa, GPT-2, Llama, Mistral,
                Qwen2.
            train_mode: "ic_only" trains the exits alone, so the final classifier's answers stay the base's.
            fields: of the configuration, such as `exits` and `threshold`.

        Raises:
            ValueError: exits are not known for that kind of classifier.
        """
        model = base if isinstance(base, PreTrainedModel) else cls._base_class.from_pretrained(base)
        family = cls._family(model.config)
        names = {"id2label": model.config.id2label, "label2id": model.config.label2id}
        backbone_config = deepcopy(model.config)
        backbone_config.architectures = [type(model).__name__]
        config = cls.config_class(
            family=family, backbone_config=backbone_config, train_mode=train_mode, **names | fields
        )
        multi_exit = cls(config).to(model.dtype)
        multi_exit.network.load_base(model)
        return multi_exit.to(model.device).eval()

    @classmethod
    def _family(cls, config: PreTrainedConfig) -> str:
        if config.model_type in KINDS:
            return "encoder"
        raise ValueError(f"{cls.__name__}.from_base knows {', '.join(KINDS)}, not {config.model_type!r}")


class MultiExitForImageClassification(MultiExitPreTrainedModel):
    """A multi-exit classifier of images."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _base_class = AutoModelForImageClassification

    @classmethod
    def _family(cls, config: PreTrainedConfig) -> str:
        return "backbone" if config.model_type == "resnet" else super()._family(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_mode: str | None = None,
        threshold: float | None = None,
        fallback: str | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> MultiExitOutput:
        """
        Args:
            pixel_values: (B, channels, image_size, image_size), in [0, 1] for the families of Shallow-Deep Networks.
            labels: (B), classes. The loss is SDN's, the sum of the exits' where only they are trained; outside "all" mode it is the
                cross-entropy of `logits`.
            exit_mode: "all" computes every classifier, "final" the final one alone (the static network), "dynamic" stops for each sample
                at the first confident exit. None: "all" in training or with labels, otherwise "dynamic".
            threshold, fallback: instead of the configuration's.
            interpolate_pos_encoding: for a ViT, images of other sizes than it was trained with.

        Raises:
            ValueError: images of another shape, or an unknown mode.
        """
        options = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
        return self._classify(self.network.start(pixel_values, **options), labels, exit_mode, threshold, fallback)


class MultiExitForSequenceClassification(MultiExitPreTrainedModel):
    """A multi-exit classifier of texts."""

    config_class = MultiExitTextConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _base_class = AutoModelForSequenceClassification

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        exit_mode: str | None = None,
        threshold: float | None = None,
        fallback: str | None = None,
        **kwargs: Any,
    ) -> MultiExitOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as the base takes them, (B, N) and (B, N, C).
            labels, exit_mode, threshold, fallback: as for images.

        Raises:
            ValueError: no text or two, another rank, or an unknown mode.
        """
        texts = Texts(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self._classify(self.network.start(texts), labels, exit_mode, threshold, fallback)


__all__ = [
    "MultiExitForImageClassification",
    "MultiExitForSequenceClassification",
    "MultiExitOutput",
    "MultiExitPreTrainedModel",
]
