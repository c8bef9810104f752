"""What the tests of recurrences share: outputs with gradients, held against a loop over the tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch

Tensors = dict[str, torch.Tensor]


def gradients(function: Callable, tensors: Tensors, seed: int = 9, **options) -> tuple[tuple, tuple]:
    """The outputs of `function`, and the gradients of a random projection of them for every tensor."""
    outputs = function(**tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    projections = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in outputs]
    loss = sum((x * projection).sum() for x, projection in zip(outputs, projections))
    return outputs, torch.autograd.grad(loss, list(tensors.values()))


def assert_same_with_gradients(ours: Callable, theirs: Callable, tensors: Tensors, **tolerance: float) -> None:
    """`ours(**tensors)` equals `theirs(**tensors)`: outputs, final state and all gradients."""
    (our_outputs, our_gradients), (their_outputs, their_gradients) = (
        gradients(ours, tensors),
        gradients(theirs, tensors),
    )
    pairs = zip((*our_outputs, *our_gradients), (*their_outputs, *their_gradients))
    for name, (a, b) in zip(("output", "final_state", *tensors), pairs):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def apart(reference: Callable, borders: list[int], fixed: tuple[str, ...] = ()) -> Callable:
    """A function that runs `reference` on each packed sequence by itself; tensors named in `fixed` belong to all of them."""

    def run(initial_state: torch.Tensor, **tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, states = [], []
        for index, (first, last) in enumerate(pairwise(borders)):
            state = initial_state[index : index + 1]
            if last > first:
                cut = {name: x if name in fixed else x[:, first:last] for name, x in tensors.items()}
                output, state = reference(**cut, initial_state=state)
                outputs.append(output)
            states.append(state)
        return torch.cat(outputs, 1), torch.cat(states)

    return run


def assert_continues_from_its_state(op: Callable, tensors: Tensors, fixed: tuple[str, ...] = ()) -> None:
    """Cutting a sequence of 90 tokens anywhere and handing the state on changes nothing."""
    whole, final = op(**tensors, output_final_state=True)
    tensors = dict(tensors)
    state, parts = tensors.pop("initial_state"), []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        cut = {name: x if name in fixed else x[:, part] for name, x in tensors.items()}
        output, state = op(**cut, initial_state=state, output_final_state=True)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


class MatrixStateOpTests:
    """Of an op on q, k, v, one more tensor and an initial state. A subclass names the op, its loop, its name in `torch.library` and what
    draws its inputs, all static."""

    op: Callable
    reference: Callable
    name: str
    inputs: Callable[..., Tensors]

    @property
    def with_state(self) -> Callable:
        return partial(self.op, output_final_state=True)

    def test_packed_sequences_equal_separate_ones(self):
        borders = [0, 1, 1, 18, 88, 100]
        packed = partial(self.with_state, cu_seqlens=torch.tensor(borders))
        tensors = self.inputs(batch=1, tokens=100, sequences=5)
        assert_same_with_gradients(packed, apart(self.reference, borders), tensors, atol=1e-10, rtol=1e-10)

    def test_borders_that_do_not_cover_the_tokens_are_refused(self):
        with pytest.raises(ValueError, match="rise from 0"):
            self.op(**self.inputs(batch=1, tokens=9, sequences=2), cu_seqlens=torch.tensor([0, 4, 8]))

    def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(self):
        assert_continues_from_its_state(self.op, self.inputs(tokens=90))

    def test_scale_replaces_the_default(self):
        tensors = self.inputs()
        torch.testing.assert_close(self.op(**tensors, scale=1.0)[0], self.reference(**tensors, scale=1.0)[0])

    def test_no_final_state_unless_asked(self):
        assert self.op(**self.inputs())[1] is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_comes_back_as_given_with_a_float32_state(self, dtype):
        tensors = {n: x.detach().to(dtype).requires_grad_() for n, x in self.inputs(dtype=torch.float32).items()}
        (o, state), grads = gradients(self.with_state, tensors)
        assert o.dtype == dtype and state.dtype == torch.float32 and {x.dtype for x in grads} == {dtype}
        expected, _ = self.reference(**{name: x.float() for name, x in tensors.items()})
        torch.testing.assert_close(o.float(), expected, atol=0.05, rtol=0.02)

    def test_autocast_leaves_the_state_in_float32(self):
        tensors = self.inputs(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            o, state = self.with_state(**tensors)
        torch.testing.assert_close(o, self.reference(**tensors)[0], atol=1e-4, rtol=1e-4)
        assert state.dtype == torch.float32

    def test_the_library_op_passes_opcheck(self):
        *tensors, state = self.inputs(batch=1, tokens=9, dtype=torch.float32).values()
        torch.library.opcheck(getattr(torch.ops.hf_ext, self.name).default, (*tensors, 0.5, state, None))

    def test_compiles_without_graph_breaks_with_gradients(self):
        compiled = torch.compile(self.with_state, backend="aot_eager", fullgraph=True)
        tensors = self.inputs(dtype=torch.float32)
        assert_same_with_gradients(compiled, self.with_state, tensors, atol=1e-6, rtol=1e-5)

    def test_an_exported_program_needs_nothing_of_this_package(self):
        op = self.op

        class Module(torch.nn.Module):
            def forward(self, *tensors):
                return op(*tensors)[0]

        *tensors, _ = (x.detach() for x in self.inputs(dtype=torch.float32).values())
        program = torch.export.export(Module(), tuple(tensors))
        assert not [node for node in program.graph.nodes if "hf_ext" in str(node.target)]
        torch.testing.assert_close(program.module()(*tensors), op(*tensors)[0])
