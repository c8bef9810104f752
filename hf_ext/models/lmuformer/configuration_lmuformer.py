"""Configuration of LMUFormer.

Paper: "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units", arXiv:2402.04882.
Reference: zeyuliu1037/LMUFormer @5debadda, `src/lmu_rnn.py`.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hf_ext.layers.presets import PresetMixin
from hf_ext.layers.series_config import check_at_least

# The words of Speech Commands v2, in the order of the authors' classes
WORDS = """
    backward follow five bed zero on learn two house tree dog stop seven eight down six forward cat right visual four wow no nine off
    three left marvin yes up sheila happy bird go one
"""
LABELS = dict(enumerate(WORDS.split()))
SPEECH_COMMANDS = {"id2label": LABELS, "label2id": {word: i for i, word in LABELS.items()}}
MIXERS = ("lmu", "attention")


@strict
class LMUFormerConfig(PresetMixin, PreTrainedConfig):
    r"""
    Args:
        num_mel_bins: channels of a frame of `input_features`.
        hidden_size: width of the tokens, one per frame.
        num_hidden_layers: blocks of memory and channel mixer.
        intermediate_size: width of the channel mixers; None means `4 * hidden_size`.
        mixer: "lmu", or "attention": the spiking self-attention that the paper compares with, which cannot be streamed.
        num_attention_heads: heads of "attention"; they divide `hidden_size`.
        memory_size: numbers that a Legendre memory keeps; None means `hidden_size`, and twice that where it is spiking.
        theta: frames that the memory looks back.
        spiking: whether activations are leaky integrate-and-fire neurons whose time is that of the frames.
        membrane_shortcut: whether in a spiking model the sums around blocks are of membranes ("Spiking LMUFormer" of the paper), or of
            spikes. Without effect on others.
        tau, threshold, surrogate_alpha: time constant in frames, firing threshold and steepness of the surrogate gradient of neurons.
        mixer_threshold: firing threshold before a memory, and behind attention, with `membrane_shortcut`.
        max_length: frames that the model was trained on. Any number can be read; up to this many need no impulse response computed.
        batch_norm_eps: of every BatchNorm.
        initializer_range: standard deviation of the initial weights of the memory's linear layers and the classifier.

    Raises:
        ValueError: a size below one, heads that do not divide `hidden_size`, an unknown mixer, attention without spikes and membrane
            shortcut, or constants out of their range.
    """

    model_type = "lmuformer"
    keys_to_ignore_at_inference = ["past_key_values", "hidden_states"]
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "lmuformer": SPEECH_COMMANDS,
        "spiking-lmuformer-spikes": {**SPEECH_COMMANDS, "spiking": True, "membrane_shortcut": False},
        "spiking-lmuformer": {**SPEECH_COMMANDS, "spiking": True},
        "spiking-attention": {**SPEECH_COMMANDS, "spiking": True, "mixer": "attention"},
    }

    num_mel_bins: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 1
    intermediate_size: int | None = None
    mixer: str = "lmu"
    num_attention_heads: int = 16
    memory_size: int | None = None
    theta: float | int = 128
    spiking: bool = False
    membrane_shortcut: bool = True
    tau: float | int = 2.0
    threshold: float | int = 1.0
    mixer_threshold: float | int = 0.5
    surrogate_alpha: float | int = 4.0
    max_length: int = 128
    batch_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.memory_size = self.memory_size or self.hidden_size * (2 if self.spiking else 1)
        super().__post_init__(**kwargs)
        check_at_least(self, 1, "num_mel_bins", "hidden_size", "num_hidden_layers", "intermediate_size", "max_length")
        check_at_least(self, 1, "num_attention_heads", "memory_size", "theta", "tau")
        for name in ("threshold", "mixer_threshold", "surrogate_alpha", "batch_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")
        if self.mixer not in MIXERS:
            raise ValueError(f"`mixer` must be one of {', '.join(MIXERS)}, got {self.mixer!r}")
        if self.mixer == "attention" and not (self.spiking and self.membrane_shortcut):
            raise ValueError(
                "`mixer` = 'attention' is of spikes and needs `spiking` and `membrane_shortcut`, "
                f"got {self.spiking} and {self.membrane_shortcut}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )


__all__ = ["LMUFormerConfig"]
