"""Folding is exact, and a model keeps its form when it is saved."""

from copy import deepcopy

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_ext.layers.convolution import ConvBatchNorm, PooledPatchEmbedding
from hf_ext.layers.fusion import (
    FusionMixin,
    batchnorm_affine,
    fuse_affine_before,
    fuse_batchnorm_before,
    fuse_conv_batchnorm,
    fuse_parallel_convs,
    identity_conv,
)


def used(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with parameters and statistics that are not those of a new module."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if "running_var" in name else noise - 0.4)
    return module.eval()


def image(channels: int, size: int = 7) -> torch.Tensor:
    return torch.randn(2, channels, size, size + 2, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_batchnorm_folds_into_the_convolution_before_it():
    for conv in (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(6, 8, 3, groups=2)):
        conv, norm = used(conv), used(nn.BatchNorm2d(8))
        torch.testing.assert_close(
            fuse_conv_batchnorm(conv, norm)(image(6)), norm(conv(image(6))), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_batchnorm_without_parameters_folds_too():
    conv, norm = used(nn.Conv2d(6, 8, 1)), used(nn.BatchNorm2d(8, affine=False))
    torch.testing.assert_close(fuse_conv_batchnorm(conv, norm)(image(6)), norm(conv(image(6))), atol=1e-5, rtol=1e-5)
    before = used(nn.BatchNorm2d(6, affine=False))
    torch.testing.assert_close(fuse_batchnorm_before(before, conv)(image(6)), conv(before(image(6))))


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_batchnorm_folds_into_the_1x1_convolution_after_it(groups, bias):
    norm, conv = used(nn.BatchNorm2d(6)), used(nn.Conv2d(6, 9, 1, groups=groups, bias=bias))
    torch.testing.assert_close(fuse_batchnorm_before(norm, conv)(image(6)), conv(norm(image(6))), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batchnorm_folds_into_the_linear_layer_after_it():
    norm, linear = used(nn.BatchNorm1d(6)), used(nn.Linear(6, 4, bias=False))
    x = image(6)[:, :, 0].transpose(1, 2)
    expected = linear(norm(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(fuse_affine_before(*batchnorm_affine(norm), linear)(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batchnorm_folds_into_a_strided_convolution_without_padding():
    norm, conv = used(nn.BatchNorm2d(4)), used(nn.Conv2d(4, 6, 3, stride=3, groups=2))
    expected = conv(norm(image(4)))
    torch.testing.assert_close(fuse_batchnorm_before(norm, conv)(image(4)), expected, atol=1e-5, rtol=1e-5)


def test_what_precedes_a_padded_convolution_is_not_folded():
    with pytest.raises(ValueError, match="only without padding"):
        fuse_batchnorm_before(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))


@torch.no_grad()
def test_parallel_convolutions_become_one():
    x = image(12)
    branches = [
        used(nn.Conv2d(12, 12, kernel, padding=kernel // 2, groups=groups, bias=bias), seed)
        for seed, (kernel, groups, bias) in enumerate([(3, 6, True), (1, 2, False), (5, 2, False), (3, 12, True)])
    ]
    branches.append(identity_conv(12, like=x))
    fused = fuse_parallel_convs(branches)
    assert (fused.groups, fused.kernel_size, fused.padding) == (2, (5, 5), (2, 2))
    torch.testing.assert_close(fused(x), sum(conv(x) for conv in branches), atol=1e-5, rtol=1e-5)


def test_parallel_convolutions_whose_groups_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="multiples of the smallest"):
        fuse_parallel_convs([nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 6, 1, groups=3)])


@torch.no_grad()
def test_pooled_patch_embedding_averages_only_real_pixels():
    layer = used(PooledPatchEmbedding(3, 4, stride=2))
    constant = torch.full((1, 3, 5, 5), 2.0)
    output = layer(constant)
    assert output.shape == (1, 4, 3, 3)
    torch.testing.assert_close(output, output[:, :, :1, :1].expand_as(output))


@strict
class ToyConfig(PreTrainedConfig):
    model_type = "fusion_toy"
    fused: bool = False


class ToyModel(FusionMixin, PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([ConvBatchNorm(3, 4, 3, hidden_act="relu"), PooledPatchEmbedding(4, 5, stride=2)])
        self.head = nn.Conv2d(5, 2, 1)
        self.post_init()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class ToyWithHead(FusionMixin, PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = ToyModel(config)
        self.stem = ConvBatchNorm(3, 3)
        self.post_init()

    def forward(self, x):
        return self.body(self.stem(x))


@torch.no_grad()
@pytest.mark.parametrize("model_class", [ToyModel, ToyWithHead])
def test_a_model_saves_and_loads_in_either_form(model_class, tmp_path):
    model = used(model_class(ToyConfig()))
    expected = model(image(3))
    fused = deepcopy(model).fuse()
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(image(3)), expected, atol=1e-5, rtol=1e-5)
    for name, saved in {"plain": model, "fused": fused}.items():
        saved.save_pretrained(tmp_path / name)
        loaded = model_class.from_pretrained(tmp_path / name)
        assert loaded.config.fused == loaded.is_fused == (name == "fused")
        assert torch.equal(loaded(image(3)), saved(image(3)))


@torch.no_grad()
def test_fusing_twice_changes_nothing():
    model = used(ToyWithHead(ToyConfig())).fuse()
    before = deepcopy(model.state_dict())
    assert model.fuse() is model
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_in_training_mode_is_not_fused():
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        ToyModel(ToyConfig()).train().fuse()


def test_a_model_with_adapters_is_not_fused():
    from peft import LoraConfig, get_peft_model

    model = ToyModel(ToyConfig()).eval()
    get_peft_model(model, LoraConfig(r=1, target_modules=["head"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.eval().fuse()


def test_a_frozen_layer_stays_frozen():
    layer = ConvBatchNorm(3, 4).requires_grad_(False).eval()
    assert not layer.fuse().conv.weight.requires_grad
