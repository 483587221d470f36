"""What the headers of a whole checkpoint take: the largest ones are read, larger ones refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inspection.sparse_checkpoint import write_sparse

_MEASURED = """
import sys
from pathlib import Path
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError
from moeify.inspection.inspect import inspect
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1000
Path('/proc/self/clear_refs').write_text('5')
before, folder, said = peak(), Path(sys.argv[2]), []
if sys.argv[1] == 'inspect': said = [p.message for p in inspect(folder).problems]
else:
    try: Checkpoint.open(folder)
    except CheckpointError as error: said = [error.message]
print(peak() - before, *said, sep='\\n')
"""
LIMIT_MB = 100


def measured(what: str, folder: Path) -> tuple[float, list[str]]:
    """Megabytes over the baseline, and what was refused or found."""
    line = [sys.executable, "-c", _MEASURED, what, str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    megabytes, *said = done.stdout.splitlines()
    return float(megabytes), said


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200,853 tensors, about as many as the largest checkpoints have."""
    return write_sparse(tmp_path_factory.mktemp("largest"), shards=64, layers=130, experts=512)


@pytest.mark.parametrize("what", ["open", "inspect"])
def test_200_000_tensors_are_read(largest: Path, what: str) -> None:
    megabytes, said = measured(what, largest)
    assert said == []
    assert megabytes <= LIMIT_MB


@pytest.mark.parametrize(
    ("shards", "each", "name", "shape"),
    [
        (1, 1_000_000, "{n}", "[0]"),
        (5, 60_000, "model.layers.{n}.up_proj.weight", "[0]"),
        (15, 10_000, "{n}", "[{n}, 0, 1{n}, 2{n}]"),
        (15, 10_000, "{n}" + "x" * 900, "[0]"),
        (20, 3_000, "{n}\U0001f600" + "x" * 400, "[0]"),
    ],
    ids=["a million", "many", "shapes", "long names", "wide names"],
)
def test_more_is_refused_before_it_is_read(tmp_path: Path, shards: int, each: int, name: str, shape: str) -> None:
    entry = f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}'
    index = {}
    for number in range(shards):
        part = range(number * each + 1, (number + 1) * each + 1)
        header = "{" + ",".join(entry.replace("{n}", str(n)) for n in part) + "}"
        file = f"model-{number}.safetensors"
        length = len(header.encode()).to_bytes(8, "little")
        (tmp_path / file).write_bytes(length + header.encode())
        index[name.replace("{n}", str(part[0]))] = file
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    megabytes, said = measured("inspect", tmp_path)
    assert any("it may take" in line for line in said)
    assert megabytes <= LIMIT_MB
