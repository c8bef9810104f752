"""Tasks that Transformers' `pipeline()` lacks, and Diffusers pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# task -> (module here, pipeline class, auto class, type for `pipeline()`'s own bookkeeping)
TASKS = {
    "image-to-image": ("image_to_image", "ImageToImagePipeline", "AutoModelForImageToImage", "image"),
    "time-series-forecasting": (
        "time_series_forecasting",
        "TimeSeriesForecastingPipeline",
        "AutoModelForTimeSeriesPrediction",
        "multimodal",
    ),
}


def register(transformers_pipelines: Any) -> None:
    """Adds `TASKS` to `pipeline()`; runs when `transformers.pipelines` is imported. A task that upstream has is left alone."""
    import transformers

    registry = transformers_pipelines.PIPELINE_REGISTRY
    for task, (module, pipeline_class, auto_class, kind) in TASKS.items():
        if task not in registry.supported_tasks:
            registry.register_pipeline(
                task,
                pipeline_class=getattr(import_module(f"hf_ext.pipelines.{module}"), pipeline_class),
                pt_model=getattr(transformers, auto_class),
                type=kind,
            )
