"""Every ready model passes the passport, save what its catalogue entry declares impossible, with the reason."""

import pytest

from hf_ext.catalog import METHODS
from tests.passport import CHECKS, TRANSFORMERS_ONLY, subjects
from tests.tiny import TINY

READY = [slug for slug in TINY if METHODS[slug].ready]
SUBJECTS = [(slug, subject) for slug in READY for subject in subjects(slug)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("slug", "subject"), SUBJECTS, ids=[subject.model_class.__name__ for _, subject in SUBJECTS])
def test_passport(slug, subject, check):
    if not subject.is_transformers and check in TRANSFORMERS_ONLY:
        pytest.skip("a Diffusers model: there is no such socket")
    if reason := METHODS[slug].cannot.get(check):
        pytest.skip(reason)
    CHECKS[check](subject)


def test_every_ready_method_with_models_is_in_the_passport():
    missing = [m.slug for m in METHODS.values() if m.ready and m.model_classes() and m.slug not in TINY]
    assert not missing


def test_declared_impossibilities_name_a_check():
    for method in METHODS.values():
        assert set(method.cannot) <= set(CHECKS), method.slug
