"""LMUFormer: convolutions over frames, blocks of Legendre memory and channel mixer, a class per frame, averaged over time.

Paper: "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units", arXiv:2402.04882.
Reference: zeyuliu1037/LMUFormer @5debadda, `src/lmu_rnn.py` and `src/blocks`.

Differences on purpose: any number of frames (the reference takes 128), membranes start at 0 in every call (there they go on until
`reset_net`), and a stream, read in pieces of any length, gives what the whole gives, spikes included. Pointwise convolutions are linear
layers, so LoRA and 8-bit find them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.legendre_memory import LegendreMemory, LegendreMemoryCell
from hf_ext.layers.linear import token_linear
from hf_ext.layers.streaming import (
    FrameContext,
    FrameConv,
    NormActivation,
    SpikingNeurons,
    StreamCache,
    TokenBatchNorm,
    name_states,
)

from .configuration_lmuformer import LMUFormerConfig

DELAY = 5  # frames that the embedding looks ahead, one per convolution


@dataclass
class LMUFormerForAudioClassificationOutput(ModelOutput):
    """
    Args:
        loss: when `labels` are given.
        logits: (batch, num_labels) after all frames read; 0 in a stream before there is one.
        frame_logits: (batch, frames, num_labels), what the logits would be if the input ended at each frame (but for the `DELAY`
            frames that the convolutions look ahead): running means.
        past_key_values: the stream to go on with, with `use_cache=True`.
        hidden_states: the embeddings and the output of each block, with `output_hidden_states=True`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    frame_logits: torch.FloatTensor | None = None
    past_key_values: StreamCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class StreamDecision:
    """The class that a stream was found to be of, how sure that was, and how many frames had been read."""

    label: int
    confidence: float
    frames: int


def norm(width: int, config: LMUFormerConfig) -> TokenBatchNorm:
    return TokenBatchNorm(width, eps=config.batch_norm_eps)


def neurons(config: LMUFormerConfig, threshold: float | None = None) -> SpikingNeurons:
    return SpikingNeurons(config.tau, threshold or config.threshold, config.surrogate_alpha)


def norm_activation(
    width: int, config: LMUFormerConfig, plain: type[nn.Module], threshold: float | None = None
) -> NormActivation:
    """A norm, then neurons or in a model without them an activation `plain`."""
    return NormActivation(norm(width, config), neurons(config, threshold) if config.spiking else plain())


class LMUFormerConvLayer(nn.Module):
    """A convolution of three frames, ReLU and norm; or norm and neurons."""

    def __init__(self, config: LMUFormerConfig, in_channels: int):
        super().__init__()
        self.context = FrameContext()
        self.conv = FrameConv(in_channels, config.hidden_size)
        self.activation = nn.Identity() if config.spiking else nn.ReLU()
        self.norm = norm_activation(config.hidden_size, config, nn.Identity)

    def convolve(self, frames: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        return self.activation(self.conv(self.context(frames, cache)))

    def forward(self, frames: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        return self.norm(self.convolve(frames, cache), cache)


class LMUFormerEmbeddings(nn.Module):
    """Frames (B, N, mel bins) to tokens (B, N, hidden_size), of eleven frames each: four layers, and one more convolution around them.

    With a membrane shortcut the fourth layer's membranes are what that convolution, of its spikes, is added to.
    """

    def __init__(self, config: LMUFormerConfig):
        super().__init__()
        self.membrane_shortcut = config.spiking and config.membrane_shortcut
        width = config.hidden_size
        self.layers = nn.ModuleList([LMUFormerConvLayer(config, size) for size in (config.num_mel_bins, *[width] * 3)])
        self.position_context = FrameContext()
        self.position_conv = FrameConv(width, width)
        of_spikes = config.spiking and not config.membrane_shortcut
        self.position_norm = norm_activation(width, config, nn.Identity) if of_spikes else None

    def forward(self, frames: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        *layers, last = self.layers
        for layer in layers:
            frames = layer(frames, cache)
        tokens = last.convolve(frames, cache)
        outputs = last.norm(tokens, cache)
        if self.membrane_shortcut:
            tokens, outputs = self.position_context(torch.cat((tokens, outputs), -1), cache).chunk(2, -1)
        else:
            tokens = outputs = self.position_context(outputs, cache)
        positions = self.position_conv(outputs)
        if self.position_norm is not None:
            positions = self.position_norm(positions, cache)
        return tokens[:, 1:-1] + positions


class LMUFormerMemory(nn.Module):
    """The Legendre memory as a mixer of tokens, then a linear layer and a norm."""

    def __init__(self, config: LMUFormerConfig):
        super().__init__()
        width = config.hidden_size
        shortcut = config.spiking and config.membrane_shortcut
        self.input_norm = norm_activation(width, config, nn.Identity, config.mixer_threshold) if shortcut else None
        self.cell = LegendreMemoryCell(
            width,
            width,
            config.memory_size,
            config.theta,
            partial(neurons, config) if config.spiking else None,
            config.max_length,
            config.batch_norm_eps,
        )
        self.o_proj = nn.Linear(width, width)
        self.norm = (
            NormActivation(norm(width, config), nn.Identity())
            if shortcut
            else norm_activation(width, config, nn.Identity)
        )

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        if self.input_norm is not None:
            tokens = self.input_norm(tokens, cache)
        tokens, _ = self.cell(tokens, cache)
        return self.norm(token_linear(self.o_proj, tokens), cache)


class LMUFormerAttention(nn.Module):
    """Self-attention of spikes without softmax, over all tokens: the paper's baseline."""

    scaling = 0.25

    def __init__(self, config: LMUFormerConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.input_norm = norm_activation(width, config, nn.Identity)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = (norm_activation(width, config, nn.Identity) for _ in range(3))
        self.neurons = neurons(config, config.mixer_threshold)
        self.o_proj = nn.Linear(width, width)
        self.norm = NormActivation(norm(width, config), nn.Identity())

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        tokens = self.input_norm(tokens)
        layers = ((self.q_proj, self.q_norm), (self.k_proj, self.k_norm), (self.v_proj, self.v_norm))
        q, k, v = (
            activation(token_linear(layer, tokens)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, activation in layers
        )
        mixed = q @ k.mT @ v * self.scaling
        return self.norm(token_linear(self.o_proj, self.neurons(mixed.transpose(1, 2).flatten(2))))


class LMUFormerMLP(nn.Module):
    """The channel mixer: two linear layers, a norm and an activation after each, or before each with a membrane shortcut."""

    def __init__(self, config: LMUFormerConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.norm_first = config.spiking and config.membrane_shortcut
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        first, second = (width, hidden) if self.norm_first else (hidden, width)
        self.norm1, self.norm2 = norm_activation(first, config, nn.GELU), norm_activation(second, config, nn.ReLU)

    def forward(self, tokens: torch.Tensor, cache: StreamCache | None) -> torch.Tensor:
        for layer, activation in ((self.fc1, self.norm1), (self.fc2, self.norm2)):
            if self.norm_first:
                tokens = token_linear(layer, activation(tokens, cache))
            else:
                tokens = activation(token_linear(layer, tokens), cache)
        return tokens


MIXERS = {"lmu": LMUFormerMemory, "attention": LMUFormerAttention}


class LMUFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: LMUFormerConfig):
        super().__init__()
        self.mixer = MIXERS[config.mixer](config)
        self.mlp = LMUFormerMLP(config)

    def forward(self, tokens: torch.Tensor, past_key_values: StreamCache | None = None) -> torch.Tensor:
        tokens = tokens + self.mixer(tokens, past_key_values)
        return tokens + self.mlp(tokens, past_key_values)


class LMUFormerPreTrainedModel(PreTrainedModel):
    config_class = LMUFormerConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["LMUFormerLayer", "LMUFormerEmbeddings"]
    _skip_keys_device_placement = ["past_key_values"]
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer divides by its accumulation steps
    _can_record_outputs = {"hidden_states": LMUFormerLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: truncated normal in the memory's linear layers and the classifier, torch's default for convolutions."""
        if isinstance(module, nn.Linear):
            init_linear(module, self.config.initializer_range)
        elif isinstance(module, nn.Conv1d):
            init_conv_as_torch(module)
        elif isinstance(module, (LMUFormerMemory, LMUFormerAttention, LMUFormerMLP)):
            for layer in module.children():  # pointwise convolutions in the reference
                if isinstance(layer, nn.Linear):
                    init_conv_as_torch(layer)
        elif isinstance(module, LegendreMemory):
            for name, value in module.constants().items():
                init.copy_(getattr(module, name), value)
        else:
            super()._init_weights(module)


class LMUFormerModel(LMUFormerPreTrainedModel):
    """Frames (batch, time, mel bins) to hidden states (batch, time, hidden_size); spikes, with a membrane shortcut."""

    def __init__(self, config: LMUFormerConfig):
        super().__init__(config)
        self.embeddings = LMUFormerEmbeddings(config)
        self.layers = nn.ModuleList([LMUFormerLayer(config) for _ in range(config.num_hidden_layers)])
        shortcut = config.spiking and config.membrane_shortcut
        self.norm = norm_activation(config.hidden_size, config, nn.Identity) if shortcut else None
        name_states(self)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_features: torch.Tensor,
        past_key_values: StreamCache | None = None,
        use_cache: bool | None = None,
        is_last: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_features: (batch, time, num_mel_bins), a frame per 10 ms; what `LMUFormerFeatureExtractor` makes. Time may be 0 only
                to end a stream.
            past_key_values: the stream that these frames go on with, as the last call returned it. It is changed in place.
            use_cache: whether the frames begin a stream: hidden states come `DELAY` frames late, and the rest with the last piece.
                Without it the frames are the whole.
            is_last: whether the stream ends with these frames.

        Raises:
            ValueError: features of another shape, a stream that has ended, or one through "attention".
        """
        cache = past_key_values
        if use_cache and cache is None:
            cache = StreamCache()
        self._check(input_features, cache, is_last)
        if cache is not None:
            cache.closed = is_last
        hidden_states = self.embeddings(input_features.to(self._dtype), cache)
        if hidden_states.shape[1]:
            for layer in self.layers:
                hidden_states = layer(hidden_states, past_key_values=cache)
            if self.norm is not None:
                hidden_states = self.norm(hidden_states, cache)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=cache)

    @property
    def _dtype(self) -> torch.dtype:
        return self.embeddings.position_conv.weight.dtype

    def _check(self, input_features: torch.Tensor, cache: StreamCache | None, is_last: bool) -> None:
        bins = self.config.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[2] != bins or not input_features.shape[0]:
            raise ValueError(
                f"`input_features` must be (batch, time, {bins}) and not empty, got {tuple(input_features.shape)}"
            )
        if not input_features.shape[1] and not is_last:
            raise ValueError("`input_features` has no frames; that is possible only to end a stream, with is_last=True")
        if cache is None:
            if not input_features.shape[1]:
                raise ValueError("`input_features` has no frames, and there is no stream to end")
            return
        if not isinstance(cache, StreamCache):
            raise ValueError(f"`past_key_values` must be a StreamCache, got {type(cache).__name__}")
        if self.config.mixer == "attention":
            raise ValueError("a model with `mixer` = 'attention' looks at all frames at once and cannot read a stream")
        if cache.closed:
            raise ValueError("this stream has ended; begin another, or call `past_key_values.reset()`")


class LMUFormerForAudioClassification(LMUFormerPreTrainedModel):
    """A linear classifier of every frame, averaged over time: keyword spotting.

    ```python
    >>> from hf_ext.models.lmuformer import LMUFormerConfig, LMUFormerForAudioClassification

    >>> model = LMUFormerForAudioClassification(LMUFormerConfig.from_preset("lmuformer")).eval()
    >>> model(torch.randn(2, 128, 128)).logits.shape
    torch.Size([2, 35])
    ```
    """

    def __init__(self, config: LMUFormerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LMUFormerModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        labels: torch.Tensor | None = None,
        past_key_values: StreamCache | None = None,
        use_cache: bool | None = None,
        is_last: bool = False,
        **kwargs,
    ) -> LMUFormerForAudioClassificationOutput:
        r"""
        Arguments as those of `LMUFormerModel`, and

        Args:
            labels: (batch,) classes, for cross-entropy; or (batch, num_labels) in floating point, for binary cross-entropy of soft
                labels as in the paper.
        """
        outputs = self.model(
            input_features, past_key_values=past_key_values, use_cache=use_cache, is_last=is_last, **kwargs
        )
        scores = self.classifier(outputs.last_hidden_state)
        frame_logits, logits = self._running_mean(scores, outputs.past_key_values)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return LMUFormerForAudioClassificationOutput(
            loss=loss,
            logits=logits,
            frame_logits=frame_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def _running_mean(self, scores: torch.Tensor, cache: StreamCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of the scores (batch, frames, labels) up to each frame, and up to the last, of all that a stream has had so far."""
        dtype = torch.promote_types(scores.dtype, torch.float32)
        total = scores.new_zeros(len(scores), 1, scores.shape[2], dtype=dtype)
        count = 0
        if cache is not None:
            total = cache.states.get("scores", total)
            count = int(cache.states.get("frames", 0))
        frames = scores.shape[1]
        sums = total + scores.to(dtype).cumsum(1)
        places = torch.arange(count + 1, count + frames + 1, device=scores.device)
        means = (sums / places[:, None]).to(scores.dtype)
        last = sums[:, -1:] if frames else total
        if cache is not None:
            cache.states |= {"scores": last, "frames": torch.tensor(count + frames)}
        return means, (last[:, 0] / max(count + frames, 1)).to(scores.dtype)

    @torch.no_grad()
    def classify_stream(
        self, pieces: Iterable[torch.Tensor], confidence: float = 0.9, min_frames: int = 0
    ) -> StreamDecision:
        """Reads a stream only until its class is clear.

        Args:
            pieces: frames (1, time, num_mel_bins) each, in their order; see `LMUFormerFeatureExtractor`.
            confidence: softmax probability of the best class at which reading stops.
            min_frames: frames to read at least.

        Returns:
            The decision at the first piece that is clear enough, or at the end.

        Raises:
            ValueError: pieces of a batch, none at all, or a confidence outside (0, 1].
        """
        if not 0 < confidence <= 1:
            raise ValueError(f"`confidence` must be above 0 and at most 1, got {confidence}")
        cache, frames, logits = StreamCache(), 0, None
        for piece in pieces:
            if piece.ndim != 3 or len(piece) != 1:
                raise ValueError(f"a piece must be (1, time, num_mel_bins), got {tuple(piece.shape)}")
            logits = self(piece, past_key_values=cache).logits
            frames += piece.shape[1]
            probability, label = logits[0].softmax(-1).max(-1)
            if frames > max(min_frames - 1, DELAY) and probability >= confidence:
                return StreamDecision(label.item(), probability.item(), frames)
        if logits is None:
            raise ValueError("there is no piece to read")
        logits = self(piece[:, :0], past_key_values=cache, is_last=True).logits
        probability, label = logits[0].softmax(-1).max(-1)
        return StreamDecision(label.item(), probability.item(), frames)


__all__ = [
    "LMUFormerForAudioClassification",
    "LMUFormerForAudioClassificationOutput",
    "LMUFormerModel",
    "LMUFormerPreTrainedModel",
    "StreamDecision",
]
