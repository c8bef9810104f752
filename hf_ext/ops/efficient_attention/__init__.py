"""Five ways around the quadratic cost of attention, as in "A Practical Survey on Faster and Lighter Transformers" (arXiv 2103.14636).

linear_attention (kernels), performer_attention (random features), linformer_attention (low rank), window_global_attention (sparse pattern)
and nystrom_attention (landmarks). `import hf_ext` registers those without weights of their own with Transformers
(`attn_implementation="linear_elu" | "performer" | "window_global" | "nystrom"`); `interface` is what models call. A model trained with
softmax attention needs fine-tuning under another one, except where a window covers everything.

Everywhere q, k and v are (batch, heads, tokens, channels), with as many heads, and `attention_mask` is (batch, tokens), nonzero at tokens
that may be seen. Plain torch operations: differentiable, exportable, compilable. Bad shapes raise a `ValueError`.
"""

from __future__ import annotations

import torch

from . import eager, reference
from .reference import window_global_mask

__all__ = [
    "linear_attention",
    "linformer_attention",
    "nystrom_attention",
    "performer_attention",
    "random_features",
    "reference",
    "window_global_attention",
    "window_global_mask",
]


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights phi(q) . phi(k) with phi(x) = elu(x) + 1, normalised (arXiv 2006.16236). A causal call needs as many queries as keys.

    Computes in float32 (float64 for float64). A query that sees nothing real gets zeros.
    """
    mask = _check(q, k, v, attention_mask, causal)
    return eager.kernel_attention(eager.elu_features(q), eager.elu_features(k), v, causal, mask)


def random_features(number: int, channels: int, seed: int = 0, device: torch.device | None = None) -> torch.Tensor:
    """(number, channels) for `performer_attention`: orthogonal in blocks of `channels`, with the lengths of normal vectors."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q for _ in range(-(-number // channels))
    ]
    lengths = torch.randn(number, channels, generator=generator).norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:number] * lengths).to(device)


def performer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    features: torch.Tensor,
    causal: bool = False,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention in expectation, from positive random features (FAVOR+, arXiv 2009.14794).

    Args:
        features: (number, channels), as `random_features` draws them.

    The largest exponent is taken out of queries and keys, so nothing overflows; computes in float32 (float64 for float64).
    """
    mask = _check(q, k, v, attention_mask, causal)
    if features.ndim != 2 or features.shape[1] != q.shape[3]:
        raise ValueError(f"features are (number, channels = {q.shape[3]}), got {tuple(features.shape)}")
    queries, keys = (eager.exponential_features(x, features, i == 0) for i, x in enumerate((q, k)))
    return eager.kernel_attention(queries, keys, v, causal, mask)


def linformer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_projection: torch.Tensor,
    value_projection: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax over keys and values projected along the sequence (arXiv 2006.04768). Never causal: a projected key mixes all places.

    Args:
        key_projection, value_projection: (rank, longest), `longest` at least the number of keys; shared by heads.
    """
    mask = _check(q, k, v, attention_mask, False)
    tokens = k.shape[2]
    for name, projection in (("key_projection", key_projection), ("value_projection", value_projection)):
        if projection.ndim != 2 or projection.shape[1] < tokens:
            raise ValueError(
                f"{name} must be (rank, longest) with `longest` >= {tokens} keys, got {tuple(projection.shape)}"
            )
    if mask is not None:
        k, v = (x * mask[:, None, :, None] for x in (k, v))
    k, v = key_projection[:, :tokens] @ k, value_projection[:, :tokens] @ v
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def window_global_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int,
    num_global: int = 0,
    causal: bool = False,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Softmax over the pairs of `window_global_mask`: neighbours at most `window` apart (one-sided), and the first `num_global` tokens,
    which see and are seen by all (arXiv 2004.05150). Exact; full attention where the window covers everything.

    A query that sees nothing real gets zeros. Self-attention only. `scaling` is channels ** -0.5 when None.
    """
    mask = _check(q, k, v, attention_mask, True)
    if window < 0 or num_global < 0:
        raise ValueError(f"window and num_global are at least 0, got {window} and {num_global}")
    scaling = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    num_global = min(num_global, q.shape[2])
    return eager.window_global(q, k, v, window, num_global, causal, mask, scaling, dropout)


def nystrom_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_landmarks: int,
    attention_mask: torch.Tensor | None = None,
    iterations: int = 0,
    scaling: float | None = None,
) -> torch.Tensor:
    """Softmax attention through means of `num_landmarks` runs of queries and keys (arXiv 2102.03902). Self-attention, never causal.

    Args:
        num_landmarks: at most the number of tokens; runs are as equal as can be. As many as tokens: exact.
        iterations: of the paper's approximate pseudo-inverse (it takes 6); 0 for the exact one.
    """
    mask = _check(q, k, v, attention_mask, True)
    if not 1 <= num_landmarks <= q.shape[2]:
        raise ValueError(f"num_landmarks must be 1 to {q.shape[2]}, the number of tokens, got {num_landmarks}")
    scaling = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return eager.nystrom(q, k, v, num_landmarks, mask, iterations, scaling)


def _check(q, k, v, attention_mask, same_length: bool) -> torch.Tensor | None:
    """The mask as bool."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if any(x.ndim != 4 or 0 in x.shape for x in (q, k, v)):
        raise ValueError(f"q, k and v are (batch, heads, tokens, channels), no dimension 0; got {shapes}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"q and k share batch, heads and channels, k and v batch, heads and tokens (repeat grouped heads first); got {shapes}"
        )
    if same_length and q.shape[2] != k.shape[2]:
        raise ValueError(f"self-attention has as many queries as keys; got {shapes}")
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"attention_mask must be (batch, keys) = {(k.shape[0], k.shape[2])}, got {tuple(attention_mask.shape)}"
        )
    return attention_mask.bool()
