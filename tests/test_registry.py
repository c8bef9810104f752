"""`import hf_ext` is cheap, makes every ready method known to the Auto classes, and harms nobody who got there first."""

import json
import subprocess
import sys

import pytest
import transformers
from transformers import AutoConfig

from hf_ext.benchmarks import imports
from hf_ext.catalog import METHODS
from tests.tiny import TINY

READY = [method for method in METHODS.values() if method.ready and method.config]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_modeling_module():
    imports.run(imports.OURS + imports.CHECK)


def test_the_check_for_modeling_modules_can_fail():
    with pytest.raises(RuntimeError, match="modeling_itransformer"):
        imports.run("import hf_ext.models.itransformer.modeling_itransformer" + imports.CHECK)


@pytest.mark.parametrize("method", READY, ids=lambda method: method.slug)
def test_auto_config_resolves(method):
    config_class = method.config_class()
    assert type(AutoConfig.for_model(config_class.model_type)) is config_class


@pytest.mark.parametrize(
    ("method", "auto"),
    [(method, auto) for method in READY for auto in method.classes if auto.startswith("AutoModel")],
    ids=lambda value: getattr(value, "slug", value),
)
def test_auto_classes_resolve(method, auto):
    config, _ = TINY[method.slug]()
    model_class = getattr(transformers, auto)._model_mapping[type(config)]
    assert model_class is method.load(method.classes[auto])


RIVAL = """
import json
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

class RivalConfig(PreTrainedConfig):
    model_type = "gla"

class RivalModel(PreTrainedModel):
    config_class = RivalConfig

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

def register():
    AutoConfig.register("gla", RivalConfig, exist_ok=True)
    AutoModel.register(RivalConfig, RivalModel, exist_ok=True)

def report():
    from hf_ext.models.itransformer import ITransformerConfig
    from hf_ext.models.gla import GLAConfig, GLAModel

    config = AutoConfig.for_model("gla")
    ours = GLAConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_heads=1)
    print(json.dumps({
        "config": type(config).__name__,
        "model": type(AutoModel.from_config(RivalConfig())).__name__,
        "ours": type(AutoModel.from_config(ours)).__name__,
        "ours by name": type(GLAModel(ours)).__name__,
        "another of ours": type(AutoConfig.for_model("itransformer")).__name__,
    }))
"""


@pytest.mark.parametrize(
    "order", ["register()\nimport hf_ext\nreport()", "import hf_ext\nregister()\nreport()"], ids=["before", "after"]
)
def test_package_that_registers_the_same_model_type_is_left_alone(order):
    assert json.loads(run(RIVAL + order)) == {
        "config": "RivalConfig",
        "model": "RivalModel",
        "ours": "GLAModel",
        "ours by name": "GLAModel",
        "another of ours": "ITransformerConfig",
    }


def test_upstream_auto_classes_still_resolve():
    """Everything that Transformers brings stays what it was, for the types that we add to."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for model_type in ("bert", "vit", "llama", "informer"):
        assert CONFIG_MAPPING[model_type].__module__.startswith("transformers.")
    assert not set(CONFIG_MAPPING._extra_content) & set(CONFIG_MAPPING_NAMES)
