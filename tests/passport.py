"""The passport: what anything that works on a Transformers or Diffusers model must do on ours.

Each check takes a `Subject` and raises when the model falls short. `CHECKS` lists them under the names that a catalogue entry uses in
`cannot` to say what its method cannot do by its nature.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

LABELS = ("labels", "future_values")
EXACT = {"atol": 0, "rtol": 0}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@dataclass
class Subject:
    """A class, its configuration, forward arguments with a batch of two or more, and the Auto classes that should find it."""

    model_class: type
    config: Any
    inputs: dict[str, Any]
    auto_classes: tuple[str, ...] = ()

    @property
    def is_transformers(self) -> bool:
        return issubclass(self.model_class, PreTrainedModel)

    def build(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, every parameter moved off its initial value: zero-initialised ones would hide mistakes."""
        torch.manual_seed(seed)
        config = deepcopy(self.config)
        model = self.model_class(config) if self.is_transformers else self.model_class.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model.eval()

    @cached_property
    def batch_size(self) -> int:
        return next(leaf.shape[0] for leaf in tree_leaves(self.inputs) if isinstance(leaf, torch.Tensor))

    def sample(self, index: int) -> dict[str, Any]:
        """The inputs with one item of the batch."""

        def take(x: Any) -> Any:
            of_batch = isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == self.batch_size
            return x[index : index + 1] if of_batch else x

        return tree_map(take, self.inputs)

    @property
    def without_labels(self) -> dict[str, Any]:
        return {name: value for name, value in self.inputs.items() if name not in LABELS}

    def save(self, model: nn.Module, folder: str | Path) -> None:
        model.save_pretrained(folder, safe_serialization=True) if not self.is_transformers else model.save_pretrained(
            folder
        )


def tensors(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors of an output, in order; the loss is left out where there is anything else."""
    if isinstance(output, dict) and len(output) > 1:
        output = [value for name, value in output.items() if name != "loss"]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs with their floating-point tensors in `dtype`."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs)


def loss_of(output: Any) -> torch.Tensor:
    """The model's own loss, or for models without one the mean square of everything it returns."""
    if getattr(output, "loss", None) is not None:
        return output.loss
    return sum(tensor.float().square().mean() for tensor in tensors(output))


def gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss_of(model(**inputs)).backward()
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(actual: Any, expected: Any, **tolerance: float) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected) > 0, f"{len(actual)} output tensors, expected {len(expected)}"
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, **tolerance)


def relative_error(actual: Any, expected: Any) -> float:
    """The worst relative distance, in the Euclidean norm, over the output tensors."""
    pairs = zip(tensors(actual), tensors(expected))
    return max(((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-6)).item() for a, b in pairs)


@torch.no_grad()
def check_save_and_load(subject: Subject) -> None:
    model = subject.build()
    with tempfile.TemporaryDirectory() as folder:
        subject.save(model, folder)
        assert not [path for path in Path(folder).iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
        loaded, info = subject.model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], f"weights missing from the saved file: {sorted(info['missing_keys'])}"
    assert not info["unexpected_keys"], f"weights the class does not know: {sorted(info['unexpected_keys'])}"
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert_same(loaded.eval()(**subject.inputs), model(**subject.inputs), **EXACT)


def check_auto_class(subject: Subject) -> None:
    import transformers

    model = subject.build()
    with tempfile.TemporaryDirectory() as folder:
        subject.save(model, folder)
        for name in subject.auto_classes:
            loaded = getattr(transformers, name).from_pretrained(folder)
            assert type(loaded) is subject.model_class, f"{name} gave {type(loaded).__name__}"
        config = transformers.AutoConfig.from_pretrained(folder)
    assert type(config) is type(subject.config)


def check_config_round_trip(subject: Subject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if subject.is_transformers:
            subject.config.save_pretrained(folder)
            loaded = type(subject.config).from_pretrained(folder)
            assert loaded.to_dict() == subject.config.to_dict()
        else:
            model = subject.build()
            model.save_config(folder)
            loaded = subject.model_class.from_config(subject.model_class.load_config(folder))
            # Diffusers also keeps a list of the fields that were left out when the model was made
            own = {name: value for name, value in model.config.items() if not name.startswith("_")}
            assert own == {name: loaded.config.get(name) for name in own}


@torch.no_grad()
def check_batch_independence(subject: Subject) -> None:
    model = subject.build()
    whole = tensors(model(**subject.inputs))
    single = [tensors(model(**subject.sample(index))) for index in range(subject.batch_size)]
    for together, *apart in zip(whole, *single):
        if together.ndim and together.shape[0] == subject.batch_size:
            torch.testing.assert_close(together, torch.cat(apart), **CLOSE)


def check_gradients(subject: Subject) -> None:
    for name, gradient in gradients(subject.build(), subject.inputs).items():
        assert gradient is not None, f"{name} gets no gradient: the forward pass ignores it"
        assert gradient.isfinite().all(), f"{name} has a gradient that is not finite"


def check_gradient_checkpointing(subject: Subject) -> None:
    model = subject.build().train()
    runs = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable() if subject.is_transformers else model.enable_gradient_checkpointing()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(1)
        runs.append(gradients(model, subject.inputs))
    for name, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def check_attention_implementations(subject: Subject) -> None:
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = subject.build()
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        outputs.append(model(**subject.inputs))
    assert_same(outputs[1], outputs[0], **CLOSE)


@torch.no_grad()
def check_bfloat16(subject: Subject) -> None:
    model = subject.build()
    expected = model(**subject.inputs)
    output = model.bfloat16()(**cast(subject.inputs, torch.bfloat16))
    assert all(tensor.isfinite().all() for tensor in tensors(output))
    assert (error := relative_error(output, expected)) < 0.06, f"bf16 is {error:.3f} away from fp32"


@torch.no_grad()
def check_determinism(subject: Subject) -> None:
    first, second = subject.build(), subject.build()
    assert_same(second(**subject.inputs), first(**subject.inputs), **EXACT)
    assert_same(first(**subject.inputs), second(**subject.inputs), **EXACT)


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def check_lora(subject: Subject) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        subject.build(), LoraConfig(r=2, target_modules=linear_names(subject.build()), init_lora_weights=False)
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-3)
    before = [p.detach().clone() for p in trainable]
    model.zero_grad()
    loss_of(model(**subject.inputs)).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainable)), "no LoRA weight moved"
    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = model(**subject.inputs)
        model.save_pretrained(folder)
        assert_same(PeftModel.from_pretrained(subject.build(), folder).eval()(**subject.inputs), expected, **CLOSE)
        assert_same(model.merge_and_unload()(**subject.inputs), expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def check_load_in_8bit(subject: Subject) -> None:
    import bitsandbytes

    if subject.is_transformers:
        from transformers import BitsAndBytesConfig
    else:
        from diffusers import BitsAndBytesConfig
    model = subject.build()
    with tempfile.TemporaryDirectory() as folder:
        subject.save(model, folder)
        loaded = subject.model_class.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
        )
    quantized = sum(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in loaded.modules())
    linears = len(linear_names(model))
    assert 2 * quantized >= linears > 0, f"only {quantized} of {linears} linear layers were quantized"
    dtype = next(p.dtype for p in loaded.parameters() if p.is_floating_point())
    output, expected = loaded.eval()(**cast(subject.without_labels, dtype)), model(**subject.without_labels)
    assert all(tensor.isfinite().all() for tensor in tensors(output))
    assert (error := relative_error(output, expected)) < 0.1, f"8-bit is {error:.3f} away from fp32"


@torch.no_grad()
def check_disk_offload(subject: Subject) -> None:
    model = subject.build()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as offload:
        subject.save(model, folder)
        loaded = subject.model_class.from_pretrained(
            folder, device_map="auto", max_memory={"cpu": int(0.6 * size)}, offload_folder=offload
        )
        assert "disk" in loaded.hf_device_map.values(), f"nothing went to disk: {loaded.hf_device_map}"
        assert_same(loaded(**subject.inputs), model(**subject.inputs), **CLOSE)


@torch.no_grad()
def check_export(subject: Subject) -> None:
    model = subject.build()
    program = torch.export.export(model, (), subject.without_labels)
    assert_same(program.module()(**subject.without_labels), model(**subject.without_labels), **CLOSE)


@torch.no_grad()
def check_onnx(subject: Subject) -> None:
    import onnxruntime

    class Tensors(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, **inputs):
            return tuple(tensors(self.model(**inputs)))

    model = subject.build()
    inputs = subject.without_labels
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        program = torch.export.export(Tensors(model).eval(), (), inputs)
        torch.onnx.export(program, f=path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        arrays = [leaf.numpy() for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        outputs = session.run(None, dict(zip((i.name for i in session.get_inputs()), arrays)))
    expected = tensors(model(**inputs))
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def check_compile(subject: Subject) -> None:
    model = subject.build()
    expected = model(**subject.without_labels)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(compiled(**subject.without_labels), expected, **CLOSE)


def check_distributed(subject: Subject) -> None:
    """Two processes with one sample each take the same optimizer step as one process with both."""
    inputs = [subject.sample(index) for index in range(2)]
    both = tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, torch.Tensor) and a.ndim else a, *inputs)
    expected = gradients(subject.build(), both)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _distributed_step, (subject, inputs, folder), nprocs=2, start_method="fork"
        )
        result = torch.load(f"{folder}/gradients.pt", weights_only=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def _distributed_step(rank: int, subject: Subject, inputs: list[dict[str, Any]], folder: str) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    os.environ |= place | {"ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(subject.build())
    assert accelerator.num_processes == 2
    accelerator.backward(loss_of(model(**inputs[rank])))
    if rank == 0:
        own = accelerator.unwrap_model(model)
        torch.save({name: p.grad for name, p in own.named_parameters()}, f"{folder}/gradients.pt")
    accelerator.wait_for_everyone()
    os._exit(0)  # destructors of a forked process may wait for threads that the fork did not copy


CHECKS: dict[str, Callable[[Subject], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}
TRANSFORMERS_ONLY = {"auto_class", "attention_implementations"}


def subjects(slug: str) -> Iterator[Subject]:
    """One subject per model class of the method."""
    from hf_ext.catalog import METHODS
    from tests.tiny import OTHERS, TINY

    method = METHODS[slug]
    families = [
        ("", method.classes, TINY[slug]),
        *((name, *pair, OTHERS[name]) for name, *pair in method.others.items()),
    ]
    for other, classes, make in families:
        # not AutoBackbone, whose `from_pretrained` asks the Hub and takes no folders
        names = {auto: name for auto, name in classes.items() if auto != "AutoBackbone"}
        for model_class in method.model_classes(other):
            config, inputs = make()
            auto_classes = tuple(auto for auto, name in names.items() if name == model_class.__name__)
            yield Subject(model_class, config, inputs, auto_classes)
