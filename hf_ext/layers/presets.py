"""Named configurations: the sizes that a paper publishes, beside the configuration class."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

Config = TypeVar("Config", bound="PresetMixin")


class PresetMixin:
    """Gives a configuration class `from_preset`; `PRESETS` maps a name to the fields that differ from the defaults."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def from_preset(cls: type[Config], name: str, **overrides: Any) -> Config:
        """The published configuration `name`, with `overrides` on top; a `ValueError` that lists the names otherwise."""
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has no preset {name!r}; there are: {', '.join(cls.PRESETS)}")
        return cls(**{**cls.PRESETS[name], **overrides})
