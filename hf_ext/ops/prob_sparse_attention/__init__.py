"""ProbSparse attention (Informer, arXiv 2012.07436): only the queries whose attention is far from uniform attend.

`attn_implementation="prob_sparse"` gives it to the encoders of any Transformers model; see `attention`.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_ext.ops.native import load_native

from . import eager
from .reference import count, reference

__all__ = ["count", "prob_sparse_attention", "reference", "sample_keys", "sparsity"]


def sample_keys(
    queries: int,
    keys: int,
    factor: int = 5,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """(queries, count(factor, keys)) keys, with replacement: which ones each query is scored against.

    With a CPU generator (or torch's global one) these are the numbers that the authors' code draws under the same seed.
    """
    return torch.randint(keys, (queries, count(factor, keys)), generator=generator, device=device)


def sparsity(
    q: torch.Tensor, k: torch.Tensor, index_sample: torch.Tensor, padding_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """M (batch, heads, queries), float32 or float64: how far each query's attention seems to be from uniform (eq. 4).

    Arguments as in `prob_sparse_attention`. It decides who attends and is not differentiated.
    """
    q, k = q.detach(), k.detach()
    if torch.compiler.is_exporting():
        # Plain torch operations: the exported program runs where hf_ext is not installed, and converts to ONNX.
        return eager.measure(q, k, index_sample, padding_mask)
    return _measure(q, k, index_sample, padding_mask)


def prob_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index_sample: torch.Tensor,
    factor: int = 5,
    is_causal: bool = False,
    scale: float | None = None,
    padding_mask: torch.Tensor | None = None,
    output_weights: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention for the `count(factor, queries)` queries of largest `sparsity`; the others get the mean of the values.

    Args:
        q: queries (batch, queries, heads, head_channels).
        k: keys (batch, keys, heads, head_channels).
        v: values (batch, keys, heads, value_channels).
        index_sample: (queries, samples) integers below `keys`, from `sample_keys`; the same for batch and heads.
        factor: the paper's c.
        is_causal: attention reaches up to each query's own position, and the others get the running *sum* of the values: the
            authors' code, so their checkpoints need it. As many queries as keys.
        scale: factor on the scores of those that attend; head_channels ** -0.5 when None.
        padding_mask: (batch, tokens) bool for self-attention, False where a token is padding: it does not attend, is not attended
            to, and enters no mean. Not with `is_causal`.
        output_weights: whether to return the weights of all queries, (batch, heads, queries, keys).

    Returns:
        o (batch, queries, heads, value_channels) in the type of v, and the weights or None: 1 / keys in the rows of queries that
        do not attend, as the authors have it. Differentiable in q, k and v. If every query is selected, this is full attention.

    Raises:
        ValueError: shapes that do not fit each other, or a mask for the causal form.

    Selection is in float32 (float64 for float64 inputs). Memory grows with `queries * samples` at most, never with the authors'
    `queries * samples * head_channels`.
    """
    _check(q, k, v, index_sample, factor, is_causal, padding_mask)
    batch, queries, heads, channels = q.shape
    scale = channels**-0.5 if scale is None else scale
    number = count(factor, queries)
    if number == queries:
        mask = None if padding_mask is None else padding_mask[:, None, None]
        rows, weights = _attend(q.transpose(1, 2), k, v, scale, mask, is_causal, output_weights)
        return rows.transpose(1, 2), weights

    # The indices' order means nothing; sorted ones are read in the order of memory.
    measure = sparsity(q, k, index_sample, padding_mask)
    if padding_mask is not None:
        measure = measure.masked_fill(~padding_mask[:, None], float("-inf"))
    top = measure.topk(number, sorted=False).indices.sort().values  # (B, H, number)
    mask = None if padding_mask is None else padding_mask[:, None, None]
    if is_causal:
        mask = torch.arange(queries, device=q.device) <= top[..., None]
    index = top.transpose(1, 2)[..., None]  # (B, number, H, 1)
    active = q.gather(1, index.expand(-1, -1, -1, channels)).transpose(1, 2)
    rows, row_weights = _attend(active, k, v, scale, mask, False, output_weights)
    o = _lazy(v, queries, is_causal, padding_mask).scatter(
        1, index.expand_as(rows.transpose(1, 2)), rows.transpose(1, 2)
    )
    if not output_weights:
        return o, None
    uniform = row_weights.new_full((batch, heads, queries, k.shape[1]), 1 / k.shape[1])
    return o, uniform.scatter(2, top[..., None].expand_as(row_weights), row_weights)


def _attend(q, k, v, scale, mask, is_causal, output_weights) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention of (B, H, rows, D) queries to (B, K, H, D) keys: (B, H, rows, channels) and, where asked for, weights."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if not output_weights:
        o = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
        return o, None
    scores = q @ k.transpose(2, 3) * scale
    if is_causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype) if v.dtype != torch.float64 else scores.softmax(-1)
    return weights @ v, weights


def _lazy(v: torch.Tensor, queries: int, is_causal: bool, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """(B, queries, H, channels): what queries that do not attend get."""
    if is_causal:
        return v.cumsum(1)
    if padding_mask is None:
        return v.mean(1, keepdim=True).expand(-1, queries, -1, -1)
    shown = padding_mask[:, :, None, None]
    mean = torch.where(shown, v, 0.0).sum(1, keepdim=True) / shown.sum(1, keepdim=True).clamp_min(1)
    return mean.to(v.dtype).expand(-1, queries, -1, -1)


def _check(q, k, v, index_sample, factor, is_causal, padding_mask) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, index_sample {tuple(index_sample.shape)}"
    if any(x.ndim != 4 or 0 in x.shape for x in (q, k, v)):
        raise ValueError(
            f"q, k and v have four dimensions (batch, length, heads, channels), none of size 0; got {shapes}"
        )
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"q and k may differ in length alone, k and v in channels alone; got {shapes}")
    if index_sample.ndim != 2 or index_sample.shape[0] != q.shape[1] or index_sample.is_floating_point():
        raise ValueError(f"index_sample holds integers, (queries, samples); got {index_sample.dtype} with {shapes}")
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if (is_causal or padding_mask is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(f"the causal form, and a padding_mask, take as many queries as keys; got {shapes}")
    if is_causal and padding_mask is not None:
        raise ValueError("the causal form takes no padding_mask")
    if padding_mask is not None and (padding_mask.shape != k.shape[:2] or padding_mask.dtype != torch.bool):
        raise ValueError(
            f"padding_mask is bool and (batch, keys); got {padding_mask.dtype} {tuple(padding_mask.shape)} with {shapes}"
        )


def _on_any_device(
    q: torch.Tensor, k: torch.Tensor, index_sample: torch.Tensor, padding_mask: torch.Tensor | None
) -> torch.Tensor:
    return eager.measure(q, k, index_sample, padding_mask)


_measure = torch.library.custom_op("hf_ext::prob_sparse_measure", _on_any_device, mutates_args=())


@_measure.register_kernel("cpu")
def _(q, k, index_sample, padding_mask):
    native = load_native("prob_sparse_attention") if q.dtype != torch.float64 else None
    if native is None:
        return eager.measure(q, k, index_sample, padding_mask)
    q, k = (x.float() if x.stride(-1) == 1 else x.float().contiguous() for x in (q, k))
    return native.measure(q, k, index_sample.long().contiguous(), padding_mask)


@_measure.register_kernel("cuda")
def _(q, k, index_sample, padding_mask):
    try:
        from . import triton  # on a GPU call alone
    except ImportError:
        return eager.measure(q, k, index_sample, padding_mask)
    form = eager if q.dtype == torch.float64 else triton
    return form.measure(q, k, index_sample, padding_mask)


@_measure.register_fake
def _(q, k, index_sample, padding_mask):
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))
