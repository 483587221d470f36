"""Settings for every test: nothing from the network, output without colours."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "100"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than ``tmp_path``, so that no file can be linked to it."""
    here = tmp_path.stat().st_dev
    places = [Path(name) for name in ("/dev/shm", "/run/shm", "/var/tmp", "/tmp", str(Path.home()))]
    other = next(p for p in places if p.is_dir() and p.stat().st_dev != here)
    with tempfile.TemporaryDirectory(dir=other) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Training collects garbage four times a run, which takes 0.3 s where all of torch is searched."""
    gc.collect()
    gc.freeze()
