"""``moeify --version --json``: what a report of a bug should say."""

from __future__ import annotations

import os
import platform
from typing import Any

import moeify

_PACKAGES = (
    *("accelerate", "bitsandbytes", "datasets", "huggingface_hub", "lm_eval", "matplotlib", "numpy", "peft", "rich"),
    *("safetensors", "tokenizers", "torch", "transformers", "typer"),
)


def versions() -> dict[str, Any]:
    """Versions of moeify, of Python, of what is installed beside it, and the machine; nothing that names a person."""
    from moeify.provenance.record import installed_versions

    return {
        "schema": "moeify.version/1",
        "moeify": moeify.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **installed_versions(_PACKAGES),
    }
