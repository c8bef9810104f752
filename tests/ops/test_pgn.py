"""PGN as a function: every form against the loop over steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.pgn import eager, pgn, reference

NAMES = ("inputs", "history_weight", "history_bias", "gate_weight", "gate_bias", "initial_state")


def tensors(batch=2, steps=9, groups=2, channels=3, hidden=4, window=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).mul_(0.5).requires_grad_()

    shapes = (
        (batch, steps, groups, channels),
        (groups, hidden, window, channels),
        (groups, hidden),
        (groups, 2 * hidden, channels + hidden),
        (groups, 2 * hidden),
        (batch, window, groups, channels),
    )
    return {name: draw(*shape) for name, shape in zip(NAMES, shapes)}


def gradients(outputs, given):
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in outputs)
    return torch.autograd.grad(loss, list(given.values()))


def assert_equals_loop(given, **tolerance):
    ours, theirs = pgn(**given, output_final_state=True), reference(**given)
    pairs = zip((*ours, *gradients(ours, given)), (*theirs, *gradients(theirs, given)))
    for name, (a, b) in zip(("y", "final_state", *NAMES), pairs):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 12),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    hidden=st.integers(1, 3),
    window=st.integers(1, 14),
)
def test_all_steps_at_once_equal_the_loop(batch, steps, groups, channels, hidden, window):
    assert_equals_loop(tensors(batch, steps, groups, channels, hidden, window))


@pytest.mark.parametrize(("steps", "window"), [(eager.LONG, eager.LONG), (70, 69), (40, 100), (130, 33)])
@pytest.mark.parametrize("groups", [1, 2])
def test_spectra_of_long_windows_equal_the_loop(steps, window, groups):
    assert_equals_loop(tensors(1, steps, groups, 2, 3, window))


def test_zeros_stand_before_the_first_step():
    given = tensors()
    given["initial_state"] = torch.zeros_like(given["initial_state"])
    expected = pgn(**given)[0]
    assert torch.equal(pgn(**{**given, "initial_state": None})[0], expected)


def test_first_hidden_state_is_the_bias():
    given = tensors(groups=1)
    del given["initial_state"]
    first = {name: x[:, :1] if name == "inputs" else x for name, x in given.items()}
    gates = torch.cat([given["inputs"][:, 0], given["history_bias"].expand(2, 1, -1)], -1) @ given["gate_weight"][0].mT
    s, u = (gates + given["gate_bias"]).chunk(2, -1)
    expected = s.sigmoid() * given["history_bias"] + (1 - s.sigmoid()) * u.tanh()
    torch.testing.assert_close(pgn(**first)[0][:, 0], expected)


def test_a_step_does_not_see_itself_in_the_history_nor_what_follows():
    given = tensors()
    changed = given["inputs"].detach().clone()
    changed[:, 4:] += 1
    before, after = pgn(**given)[0], pgn(**{**given, "inputs": changed})[0]
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(-1).any()


@pytest.mark.parametrize("size", [1, 4, 40])
@pytest.mark.parametrize("window", [5, 60])
def test_streaming_equals_offline(size, window):
    given = tensors(steps=90, window=window)
    whole, final = pgn(**given, output_final_state=True)
    state, parts = given["initial_state"], []
    for part in given["inputs"].split(size, dim=1):
        outputs, state = pgn(**{**given, "inputs": part, "initial_state": state}, output_final_state=True)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


def test_state_is_returned_on_request():
    assert pgn(**tensors())[1] is None


@pytest.mark.parametrize("steps", [9, 64])
def test_float32_stays_near_float64(steps):
    given = tensors(steps=steps, window=steps)
    single = {name: x.detach().float() for name, x in given.items()}
    torch.testing.assert_close(pgn(**single)[0].double(), pgn(**given)[0].detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [9, 64])
def test_half_precision_runs(steps):
    given = {name: x.detach().bfloat16() for name, x in tensors(steps=steps, window=steps).items()}
    expected = pgn(**{name: x.float() for name, x in given.items()})[0]
    outputs = pgn(**given)[0]
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("steps", [9, 64])
def test_compiles_without_graph_breaks_and_exports(steps):
    given = {name: x.detach() for name, x in tensors(steps=steps, window=steps).items()}
    expected = pgn(**given)[0]

    class Op(torch.nn.Module):
        def forward(self, **inputs):
            return pgn(**inputs)[0]

    torch.testing.assert_close(torch.compile(Op(), backend="eager", fullgraph=True)(**given), expected)
    torch.testing.assert_close(torch.export.export(Op(), (), given).module()(**given), expected)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_refused(name):
    given = tensors()
    with pytest.raises(ValueError, match="`pgn` takes inputs"):
        pgn(**{**given, name: given[name][..., :-1]})


def test_an_empty_sequence_is_refused():
    given = tensors()
    with pytest.raises(ValueError, match="nothing of size 0"):
        pgn(**{**given, "inputs": given["inputs"][:, :0]})
