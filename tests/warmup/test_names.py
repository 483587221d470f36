"""``moeify.warmup`` is the function, whatever was imported before."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "before", ["import moeify", "import moeify.warmup.fit", "from moeify import WarmupConfig"]
)
def test_the_function_can_be_called(before):
    code = (
        f"{before}\nimport moeify\nassert callable(moeify.warmup)\n"
        "from moeify.errors import MoeifyError\n"
        "try:\n    moeify.warmup('./no-such-folder', dataset='x.txt')\n"
        "except MoeifyError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no-such-folder is not a checkpoint folder" in run.stdout, run.stderr
