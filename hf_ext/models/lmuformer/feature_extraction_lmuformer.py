"""What LMUFormer hears: log mel filter banks of 10 ms frames, normalised by the statistics of Speech Commands v2.

Reference: zeyuliu1037/LMUFormer @5debadda, `src/dataloader.py` and `src/gsc.yml`. It is the recipe of upstream's AST with other
numbers, and the waveform's mean taken off first.
"""

from typing import Any

import numpy as np
from transformers import ASTFeatureExtractor, BatchFeature

WINDOW = 400  # samples, 25 ms


class LMUFormerFeatureExtractor(ASTFeatureExtractor):
    """
    Args:
        num_mel_bins, sampling_rate, max_length, do_normalize, mean, std: as in `ASTFeatureExtractor`; a clip is cut, or filled with zeros,
            to `max_length` frames, and normalised to (x - mean) / (2 * std).

    Calling it with one waveform or several (arrays or lists of numbers, mono) gives `input_features` (batch, max_length, num_mel_bins).

    Raises:
        ValueError: a waveform shorter than 25 ms, of more than one channel, or with numbers that are not finite; another sampling rate.
    """

    model_input_names = ["input_features"]

    def __init__(self, max_length: int = 128, mean: float = -6.845978, std: float = 5.5654526, **kwargs: Any):
        super().__init__(max_length=max_length, mean=mean, std=std, **kwargs)

    def _extract_fbank_features(self, waveform: np.ndarray, max_length: int) -> np.ndarray:
        if waveform.ndim != 1 or len(waveform) < WINDOW:
            raise ValueError(f"a waveform must be one row of {WINDOW} samples or more, got the shape {waveform.shape}")
        if not np.isfinite(waveform).all():
            raise ValueError("a waveform holds numbers that are not finite")
        return super()._extract_fbank_features(waveform - waveform.mean(), max_length)

    def __call__(self, raw_speech: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        features = super().__call__(raw_speech, *args, **kwargs)
        features["input_features"] = features.pop("input_values")
        return features


__all__ = ["LMUFormerFeatureExtractor"]
