"""A tiny model and a guide, in float64, so that equal means equal."""

import pytest
from texts import tiny_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_texts.model_of(tmp_path_factory.mktemp("model")).double()


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    return tiny_texts.model_of(tmp_path_factory.mktemp("guide"), seed=5).double()
