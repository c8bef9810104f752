"""Which leaves of the survey's taxonomy have an entry."""

from tests.golden_calls.taxonomies import covered as run

__all__ = ["run"]
