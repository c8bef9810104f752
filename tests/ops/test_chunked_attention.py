"""Attention inside chunks against the definition, in one pass and after an open chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.chunked_attention import ACTIVATIONS, chunked_attention, leave_open, reference


def inputs(batch=2, tokens=22, reach=30, channels=4, values=6):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, tokens, channels), (batch, tokens, channels), (batch, tokens, values), (2 * reach - 1,))
    draws = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return dict(zip(("q", "k", "v", "bias"), draws))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("chunk_size", [-1, 1, 8, 11, 22, 64])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_the_output_equals_the_definition(activation, causal, chunk_size, padded):
    mask = torch.arange(22) < torch.tensor([[13], [22]]) if padded else None
    options = {"chunk_size": chunk_size, "causal": causal, "activation": activation, "attention_mask": mask}
    torch.testing.assert_close(chunked_attention(**inputs(), **options)[0], reference(**inputs(), **options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_right(activation):
    tensors = [x.requires_grad_() for x in inputs(batch=1, tokens=7, reach=5).values()]
    assert torch.autograd.gradcheck(lambda *x: chunked_attention(*x, 3, True, activation)[0], tensors)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    chunk_size=st.sampled_from([-1, 1, 5, 8, 64]),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_an_open_chunk_is_continued_whatever_its_length(cuts, chunk_size, activation):
    """The second row has less padding in each part, so its chunks begin elsewhere."""
    tensors = inputs(tokens=sum(cuts), reach=64)
    bias = tensors.pop("bias")
    masks = [torch.arange(cut) < torch.tensor([[cut // 2], [cut]]) for cut in cuts]
    seen, chunk, parts = torch.zeros(2, dtype=torch.long), None, []
    for part, mask in zip(zip(*(x.split(cuts, 1) for x in tensors.values())), masks):
        options = {"attention_mask": mask, "seen": seen, "chunk": chunk}
        parts.append(chunked_attention(*part, bias, chunk_size, True, activation, **options)[0])
        real = mask.sum(1)
        chunk, seen = leave_open(*part[1:], chunk_size, seen, real, chunk), seen + real
    assert chunk_size < 0 or chunk.keys.shape[1] <= chunk_size
    for row, mask in enumerate(torch.cat(masks, 1)):
        if mask.any():
            alone = reference(*(x[row : row + 1, mask] for x in tensors.values()), bias, chunk_size, True, activation)
            torch.testing.assert_close(torch.cat(parts, 1)[row : row + 1, mask], alone)


WRONG = {
    "activation must be one of": {"activation": "sigmoid"},
    "q, k must be": {"q": torch.zeros(2, 22, 5)},
    "attention_mask must be": {"attention_mask": torch.ones(2, 5)},
    "P at least 22": {"bias": torch.zeros(41)},
    "causal attention goes on": {"causal": False, "chunk": object()},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        chunked_attention(**inputs() | WRONG[message])
