"""RepBN folds exactly into what follows or precedes it, and PRepBN's schedule moves once per step of training, whatever surrounds it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_ext.layers.repbn import LinearNorm, RepBatchNorm, affine, fold_into_conv, fold_into_linear

CHANNELS = 6
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, CHANNELS, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def used(norm: nn.Module) -> nn.Module:
    """With parameters and statistics that are not those of a new module."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return norm


def prepbn(**schedule) -> LinearNorm:
    return LinearNorm(nn.LayerNorm(CHANNELS), RepBatchNorm(CHANNELS), **schedule)


def counters(norm: LinearNorm) -> tuple[int, int]:
    return int(norm.warm), int(norm.iter)


def test_repbn_is_batch_normalization_with_a_scaled_shortcut():
    norm, x = used(RepBatchNorm(CHANNELS)), tokens()
    mean, variance = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    normalized = (x - mean) / (variance + 1e-5).sqrt() * norm.bn.weight + norm.bn.bias
    torch.testing.assert_close(norm(x), normalized + norm.alpha * x, **CLOSE)


def test_zero_init_is_the_map_to_zero():
    assert not RepBatchNorm(CHANNELS, zero_init=True)(tokens()).any()


def test_affine_is_repbn_in_eval_mode():
    norm = used(RepBatchNorm(CHANNELS)).eval()
    scale, shift = affine(norm)
    assert scale.dtype == shift.dtype == torch.float64
    torch.testing.assert_close(norm(tokens()), (tokens() * scale + shift).float(), **CLOSE)


def test_padding_stays_out_of_the_statistics_and_skips_the_batch_normalization():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    masked, alone, x = used(RepBatchNorm(CHANNELS)), used(RepBatchNorm(CHANNELS)), tokens()
    out = masked(x, mask)
    torch.testing.assert_close(out[mask.bool()], alone(x[mask.bool()]), **CLOSE)
    torch.testing.assert_close(out[~mask.bool()], (1 + masked.alpha) * x[~mask.bool()], **CLOSE)
    torch.testing.assert_close(masked.bn.running_var, alone.bn.running_var, **CLOSE)


def test_eval_mode_ignores_the_padding_mask():
    norm = used(RepBatchNorm(CHANNELS)).eval()
    assert torch.equal(norm(tokens(), torch.zeros(2, 5)), norm(tokens()))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\), got \(2, 4\)"):
        RepBatchNorm(CHANNELS)(tokens(), torch.ones(2, 4))


def test_norm_moves_from_layernorm_to_repbn_after_the_warm_passes():
    norm, reference = used(prepbn(warm=1, step=2)), used(prepbn())
    before = norm.norm2.bn.running_mean.clone()
    torch.testing.assert_close(norm(tokens()), norm.norm1(tokens()))
    assert torch.equal(norm.norm2.bn.running_mean, before)
    for ratio, remaining in ((1.0, 1), (0.5, 0), (0.0, 0)):
        expected = ratio * reference.norm1(tokens()) + (1 - ratio) * reference.norm2(tokens())
        torch.testing.assert_close(norm(tokens()), expected, **CLOSE)
        assert counters(norm) == (0, remaining)


def test_r0_scales_the_mixture():
    norm = prepbn(step=4, r0=0.6)
    norm(tokens())
    norm(tokens())
    assert norm.ratio == pytest.approx(0.6 * 3 / 4)


def test_accumulation_counts_once_in_so_many_passes():
    norm, seen = prepbn(warm=1, step=5, update_every=3), []
    for _ in range(7):
        norm(tokens())
        seen.append(counters(norm))
    assert seen == [(0, 5), (0, 5), (0, 5), (0, 4), (0, 4), (0, 4), (0, 3)]


def test_eval_mode_uses_repbn_alone_and_counts_nothing():
    norm = used(prepbn(warm=3, step=5)).eval()
    assert torch.equal(norm(tokens()), norm.norm2(tokens()))
    assert counters(norm) == (3, 5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_moves_nothing_twice(reentrant):
    plain, again = used(prepbn(step=4)), used(prepbn(step=4))
    for step in range(3):
        x, y = tokens(step).requires_grad_(), tokens(step).requires_grad_()
        plain(x).square().sum().backward()
        checkpoint(again, y, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(y.grad, x.grad, atol=0, rtol=0)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("schedule", [dict(warm=3), dict(step=3), dict(step=1)])
def test_every_parameter_has_a_gradient_at_every_stage(schedule):
    norm = prepbn(**schedule)
    for _ in range(3):
        norm.zero_grad()
        norm(tokens()).square().sum().backward()
        assert all(parameter.grad is not None for parameter in norm.parameters())


def test_norm_that_eval_mode_leaves_out_has_gradients_of_zero():
    norm = prepbn().eval()
    norm(tokens()).square().sum().backward()
    assert not norm.norm1.weight.grad.any() and norm.norm2.bn.weight.grad.any()


def test_frozen_norm_is_in_training_what_it_is_in_eval_mode():
    norm = used(prepbn(step=3)).requires_grad_(False)
    expected = norm.eval()(tokens())
    torch.testing.assert_close(norm.train()(tokens()), expected)
    assert counters(norm) == (0, 3) and norm.norm2.bn.num_batches_tracked == 0


def test_drive_sets_what_counting_would_have_reached():
    counting, driven = prepbn(warm=2, step=4), prepbn()
    for step in range(8):
        driven.drive(step, warm=2, steps=4)
        assert counters(driven) == counters(counting)
        torch.testing.assert_close(driven(tokens(step)), counting(tokens(step)))
        driven(tokens(step))  # a second micro-batch of the same step
        assert driven.ratio == counting.ratio


def test_counters_travel_with_the_state_dict():
    norm = prepbn(warm=1, step=6, update_every=2)
    for _ in range(5):
        norm(tokens())
    other = prepbn(warm=1, step=6, update_every=2)
    other.load_state_dict(norm.state_dict())
    torch.testing.assert_close(other(tokens()), norm(tokens()))
    assert counters(other) == counters(norm)


@pytest.mark.parametrize("schedule", [dict(warm=-1), dict(step=0), dict(update_every=0)])
def test_impossible_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="LinearNorm counts"):
        prepbn(**schedule)


@pytest.mark.parametrize("driven", [dict(step=-1, warm=0, steps=1), dict(step=0, warm=0, steps=0)])
def test_impossible_place_in_the_schedule_is_refused(driven):
    with pytest.raises(ValueError, match="The schedule has"):
        prepbn().drive(**driven)


@torch.no_grad()
@pytest.mark.parametrize("norm", [RepBatchNorm(CHANNELS), prepbn()], ids=["RepBN", "PRepBN"])
@pytest.mark.parametrize("bias", [True, False])
def test_norm_folds_into_the_linear_layer_after_it(norm, bias):
    norm, linear = used(norm).eval(), nn.Linear(CHANNELS, 7, bias=bias)
    torch.testing.assert_close(fold_into_linear(norm, linear)(tokens()), linear(norm(tokens())), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_norm_folds_into_the_convolution_before_it(bias):
    norm, conv = used(RepBatchNorm(CHANNELS)).eval(), nn.Conv2d(3, CHANNELS, 4, stride=4, bias=bias)
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = norm(conv(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(fold_into_conv(conv, norm)(image), expected, **CLOSE)


@torch.no_grad()
def test_folding_keeps_the_dtype_of_the_layer():
    norm, linear = used(RepBatchNorm(CHANNELS)).eval(), nn.Linear(CHANNELS, 7).bfloat16()
    folded = fold_into_linear(norm, linear)
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16


@torch.no_grad()
def test_folding_is_exact_where_alpha_and_the_scale_nearly_cancel():
    norm = RepBatchNorm(CHANNELS).eval()
    norm.alpha.fill_(-1 + 1e-3)
    linear = nn.Linear(CHANNELS, 7)
    exact = linear.double()(norm.double()(tokens().double()))
    folded = fold_into_linear(norm.float(), linear.float())(tokens())
    torch.testing.assert_close(folded.double(), exact, **CLOSE)
