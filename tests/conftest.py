"""One thread per worker: the suite runs in as many processes as there are cores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import hf_ext  # noqa: F401

torch.set_num_threads(1)
