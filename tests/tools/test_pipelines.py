"""transformers' pipelines give what they give on the dense model, with and without moeify."""

import json
import os
import subprocess
from typing import Any

import pytest

import moeify

from ..elsewhere import python_without_moeify
from . import pipelines

FAMILIES = {"fill-mask": "bert", "feature-extraction": "bert", "text-generation": "gpt2"}


@pytest.fixture(scope="module")
def folders(pair, classifier):
    """Dense folder and mixture by task."""
    moe = classifier.with_name("moe")
    moeify.upcycle(classifier, moe, num_experts=4, noise=0.0)
    found = {task: pair(family) for task, family in FAMILIES.items()}
    return found | {"text-classification": (classifier, moe)}


@pytest.fixture(scope="module")
def alone(folders, tmp_path_factory):
    """What every pipeline gives where moeify is not installed."""
    home = tmp_path_factory.mktemp("home")
    argument = json.dumps({task: str(moe) for task, (_, moe) in folders.items()})
    done = subprocess.run(
        [str(python_without_moeify(home / "venv")), "-I", pipelines.__file__, argument],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", pipelines.INPUTS)
def test_a_pipeline_gives_what_the_dense_model_gives(task, folders, alone):
    dense, moe = folders[task]
    expected = pipelines.run(task, dense)
    assert_alike(pipelines.run(task, moe), expected)
    assert_alike(alone[task], expected)


def assert_alike(found: Any, expected: Any) -> None:
    """Equal but for rounding in the sixth digit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert found == expected
