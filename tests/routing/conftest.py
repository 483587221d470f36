"""A cache of datasets of their own for these tests."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def dataset_cache(tmp_path_factory):
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before
