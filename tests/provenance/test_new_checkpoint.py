"""What every command checks before its long work, and what it records of its options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import moeify
from moeify.checkpoint.header import StoredTensor, read_header, zeros
from moeify.checkpoint.jobs import Job, copy_of
from moeify.checkpoint.writer import Shard
from moeify.errors import CheckpointError, OutputError
from moeify.provenance.config import OutputOptions
from moeify.pruning.config import ExtractConfig, PruneConfig
from moeify.upcycling.config import AddConfig, AttachConfig, UpcycleConfig
from moeify.warming.config import WarmupConfig
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny

LOST = "model.norm.weight"
ABSENT = "there-is-no.txt"  # reading it would be an error of its own
COMMANDS: dict[str, Callable[[Path, Path, Path], object]] = {
    "attach": lambda moe, dense, out: moeify.attach(moe, out),
    "add": lambda moe, dense, out: moeify.add_experts(
        moe, out, experts=(str(dense),), router="data", dataset=ABSENT, domain_column="domain"
    ),
    "prune": lambda moe, dense, out: moeify.prune(moe, out, keep=2, by="reap", dataset=ABSENT),
    "extract": lambda moe, dense, out: moeify.extract(moe, out),
    "warmup": lambda moe, dense, out: moeify.warmup(moe, out, dataset=ABSENT),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, and a mixture in one file."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "dense", "qwen3", "Qwen3ForCausalLM")
    write_tokenizer(folder / "dense", "qwen3")
    moeify.upcycle(folder / "dense", folder / "moe", num_experts=4)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_would_not_load_is_refused_before_text_is_read(
    place: Path, tmp_path: Path, command: str
) -> None:
    moe = tmp_path / "moe"
    moe.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (moe / file).write_bytes((place / "moe" / file).read_bytes())
    tensors = {k: v for path in (place / "moe").glob("*.safetensors") for k, v in load_file(path).items()}
    del tensors[LOST]
    save_file(tensors, moe / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"would not load: norm\.weight"):
        COMMANDS[command](moe, place / "dense", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_exists_is_refused_before_text_is_read(place: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        COMMANDS[command](place / "moe", place / "dense", tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        UpcycleConfig(),
        AddConfig(experts=("a",)),
        AttachConfig(),
        PruneConfig(keep=2),
        ExtractConfig(),
        WarmupConfig(dataset="text.txt"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_config_has_the_options_of_outputs(config: OutputOptions) -> None:
    recorded = config.recorded()
    assert not recorded.keys() & {"force", "checksum"}
    assert [*recorded][-1] == "revision"


def test_record_and_card_know_the_files(place: Path) -> None:
    listed = json.loads((place / "moe" / "moeify.json").read_text())["files"]
    there = {p.name for p in (place / "moe").iterdir()} - {"moeify.json", "README.md"}
    assert listed.keys() == there


def test_a_header_is_encoded_once(tmp_path: Path) -> None:
    source: StoredTensor = zeros("w", "F32", (4, 4))
    job = Job("w", "F32", (4, 4), (copy_of(source, "F32"),))
    shard = Shard(file="model.safetensors", jobs=(job,))
    assert shard.header is shard.header
    (tmp_path / "x").write_bytes(shard.header + bytes(64))
    assert shard.nbytes == (tmp_path / "x").stat().st_size
    assert read_header(tmp_path / "x")[0]["w"].shape == (4, 4)
