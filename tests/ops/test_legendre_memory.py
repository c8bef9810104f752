"""The Legendre memory: all times at once, directly and by spectra, against the recurrence; and that it remembers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.ops.legendre_memory import eager, impulse_response, legendre_memory, reference, state_space


def inputs(batch=2, time=65, memory=6, theta=20.0, dtype=torch.float64, seed=0):
    u = torch.randn(batch, time, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return u, *state_space(memory, theta, dtype)


@pytest.fixture(params=["windows", "spectra"], autouse=True)
def form(request, monkeypatch):
    """Either way to convolve, for any length."""
    monkeypatch.setattr(eager, "LONG", 1 if request.param == "spectra" else 10**9)


@pytest.mark.parametrize("time", [1, 50, 128, 784])
def test_all_times_at_once_equal_the_recurrence(time):
    u, A, B = inputs(time=time)
    for ours, theirs in zip(legendre_memory(u, A, B), reference(u, A, B)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("memory", [1, 256, 512])
def test_float32_stays_near_float64_for_large_memories(memory):
    u, A, B = inputs(time=128, memory=memory, theta=128.0, dtype=torch.float32)
    expected, _ = reference(*(x.double() for x in (u, A, B)))
    torch.testing.assert_close(legendre_memory(u, A, B)[0].double(), expected, atol=5e-6, rtol=0)


def test_the_discretisation_is_scipys_zero_order_hold():
    signal = pytest.importorskip("scipy.signal")
    i = torch.arange(256, dtype=torch.float64)
    rate = (2 * i + 1) / 128
    power = -((-1.0) ** (i[:, None] + i))
    continuous = rate[:, None] * torch.where(i[:, None] < i, -torch.ones(()).double(), power)
    system = (
        continuous.numpy(),
        (rate * (-1.0) ** i)[:, None].numpy(),
        torch.ones(1, 256).numpy(),
        torch.zeros(1).numpy(),
    )
    A, B, *_ = signal.cont2discrete(system, 1.0, method="zoh")
    ours = state_space(256, 128, torch.float64)
    torch.testing.assert_close(ours[0], torch.from_numpy(A), atol=1e-9, rtol=0)
    torch.testing.assert_close(ours[1], torch.from_numpy(B)[:, 0], atol=1e-9, rtol=0)


def test_the_memory_holds_the_last_theta_steps():
    """The state is the window's coefficients of shifted Legendre polynomials: the 0th its mean."""
    t = torch.arange(200, dtype=torch.float64)
    u = torch.sin(t / 15)[None]
    memories, _ = legendre_memory(u, *state_space(12, 40, torch.float64))
    torch.testing.assert_close(memories[0, -1, 0], u[0, -40:].mean(), atol=1e-3, rtol=0)


def test_a_sequence_may_be_cut_anywhere_and_continued():
    u, A, B = inputs(time=90)
    whole, last = legendre_memory(u, A, B)
    state, parts = None, []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        m, state = legendre_memory(u[:, part], A, B, state)
        parts.append(m)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


def test_gradients_of_the_signal_equal_the_recurrences():
    u, A, B = inputs()
    weights = torch.randn(2, 65, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u.requires_grad_()
    ours, theirs = (torch.autograd.grad((f(u, A, B)[0] * weights).sum(), u)[0] for f in (legendre_memory, reference))
    torch.testing.assert_close(ours, theirs)


def test_a_longer_response_at_hand_is_used():
    u, A, B = inputs()
    torch.testing.assert_close(legendre_memory(u, A, B, response=impulse_response(A, B, 100)), legendre_memory(u, A, B))


def test_half_precision_is_computed_in_float32():
    u, A, B = inputs(dtype=torch.float32)
    memories, _ = legendre_memory(u.bfloat16(), A, B)
    torch.testing.assert_close(memories, reference(u.bfloat16().float(), A, B)[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(batch=st.integers(1, 3), time=st.integers(1, 90), memory=st.integers(1, 20), theta=st.floats(1.0, 200.0))
def test_any_shape_equals_the_recurrence(**shape):
    u, A, B = inputs(**shape)
    torch.testing.assert_close(legendre_memory(u, A, B), reference(u, A, B), atol=1e-8, rtol=1e-6)


WRONG = {"u must be": (torch.zeros(2, 0), 4, None), "initial_state must be": (torch.zeros(2, 5), 4, torch.zeros(2, 3))}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit_are_named(message):
    u, size, state = WRONG[message]
    with pytest.raises(ValueError, match=message):
        legendre_memory(u, *state_space(size, 10), state)
