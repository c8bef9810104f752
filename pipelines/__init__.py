"""Tasks that Transformers' `pipeline()` lacks, and Diffusers pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# task -> (module here, pipeline class, auto class, type for `pipeline()`'s own bookkeeping)
TASKS = {
    "path-planning": ("path_planning", "PathPlanningPipeline", "AutoModelForSeq2SeqLM", "text"),
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
            implementation = getattr(import_module(f"hf_ext.pipelines.{module}"), pipeline_class)
            registry.register_pipeline(
                task,
                pipeline_class=implementation,
                pt_model=getattr(transformers, auto_class),
                type=kind,
            )
            # With this, `save_pretrained` would copy our source beside the weights and loading would ask to trust it
            del implementation._registered_impl
            # `pipeline()` refuses tasks that upstream once had before it looks at the registry
            getattr(transformers_pipelines, "REMOVED_TASKS", {}).pop(task, None)
