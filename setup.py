"""pipelines/, convert/ and model_cards/ stand at the top of the tree and install inside hf_ext."""

from setuptools import find_packages, setup

OUTSIDE = {"hf_ext.pipelines": "pipelines", "hf_ext.convert": "convert", "hf_ext.model_cards": "model_cards"}

setup(
    packages=[*find_packages(include=["hf_ext", "hf_ext.*"]), *OUTSIDE],
    package_dir=OUTSIDE,
    package_data={"": ["*.cpp"], "hf_ext.model_cards": ["*/*", "*/*/*"]},
)
