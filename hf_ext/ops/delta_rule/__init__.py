"""The delta rule (arXiv 2406.06484, 2411.12537) as a function: each token replaces what the state holds under its key."""

from __future__ import annotations

import torch

from ..chunks import check_borders, check_state, flat_borders, precision, starting_state
from ..matrix_state import register, unrolls
from ..native import load_native
from . import eager
from .reference import reference

__all__ = ["delta_rule", "reference"]


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  o_t = scale * S_t^T q_t   (arXiv 2411.12537, section 2)

    Args:
        q, k: queries and keys (batch, tokens, heads, key_channels). With a key of length 1 the state's transition has the eigenvalue
            1 - beta_t along it and 1 elsewhere; longer keys make it grow.
        v: values (batch, tokens, heads, value_channels).
        beta: step sizes (batch, tokens, heads): 0 leaves the state as it is, 1 overwrites what it holds under the key, up to 2
            reflects it, so eigenvalues lie in [-1, 1].
        scale: factor on q; key_channels ** -0.5 when None.
        initial_state: (sequences, heads, key_channels, value_channels), zeros when None. `sequences` is the batch, or
            the number of packed ones.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: (sequences + 1,) integers, the borders of sequences packed along `tokens` in a batch of 1:
            0 ... tokens.
        use_qk_l2norm_in_kernel: whether q and k are first divided by sqrt(sum of squares + 1e-6), in float32.

    Returns:
        o (batch, tokens, heads, value_channels) in the type of q, and the final state in float32 (float64 for
        float64 inputs) or None. Differentiable in q, k, v, beta and initial_state.

    Raises:
        ValueError: shapes that do not fit each other.

    Computes in float32 (float64 for float64 inputs) on any device, with memory linear in `tokens`. On a CPU the forward pass has a C++ form
    that serves where there is a compiler. CUDA tensors take Triton kernels
    where Triton is installed; those keep states, the triangular inverse and sums in float32 and round the other factors to the type of q.
    """
    _check(q, k, v, beta, initial_state, cu_seqlens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if use_qk_l2norm_in_kernel:
        q, k = l2_normalize(q), l2_normalize(k)
    if cu_seqlens is None and q.shape[1] == 1:
        o, final_state = eager.step(q, k, v, beta, scale, initial_state)
    elif unrolls(q, cu_seqlens):
        o, final_state = eager.forward(q, k, v, beta, scale, initial_state, None)
    else:
        o, final_state = _forward(q, k, v, beta, scale, initial_state, cu_seqlens)
    return o, final_state if output_final_state else None


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(sum of squares + 1e-6) over the channels, computed in float32 or better, in the type of x"""
    precise = x if x.dtype == torch.float64 else x.float()
    return (precise * (precise.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def _check(q, k, v, beta, initial_state, cu_seqlens) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, beta {tuple(beta.shape)}"
    if any(x.ndim != 4 for x in (q, k, v)) or beta.ndim != 3:
        raise ValueError(
            "q, k and v have four dimensions (batch, tokens, heads, channels), beta has the first three of them; "
            f"got {shapes}"
        )
    if q.shape != k.shape or k.shape[:3] != v.shape[:3] or beta.shape != k.shape[:3]:
        raise ValueError(
            "q and k share one shape (batch, tokens, heads, key_channels), v differs from it in channels alone and beta "
            f"has no channels; got {shapes}"
        )
    if 0 in q.shape or 0 in v.shape:
        raise ValueError(f"no dimension may be 0; got {shapes}")
    expected = (check_borders(q, cu_seqlens), k.shape[2], k.shape[3], v.shape[3])
    check_state(expected, "sequences, heads, key_channels, value_channels", initial_state)


def _cpu_forward(q, k, v, beta, scale, initial_state, cu_seqlens) -> tuple[torch.Tensor, torch.Tensor]:
    """The C++ form for float32 and less, where there is a compiler."""
    dtype = precision(q, k, v, beta)
    native = load_native("delta_rule") if dtype == torch.float32 else None
    if native is None:
        return eager.forward(q, k, v, beta, scale, initial_state, cu_seqlens)
    state = starting_state(v, (*k.shape[2:], v.shape[3]), initial_state, cu_seqlens, dtype).contiguous()
    flat = (x.flatten(0, 1).float().contiguous() for x in (q, k, v, beta))
    o, final_state = native.forward(*flat, scale, state, flat_borders(q, cu_seqlens))
    return o.view(v.shape).to(q.dtype), final_state


_forward = register("delta_rule", eager, _cpu_forward)
