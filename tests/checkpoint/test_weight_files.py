"""Which weights are read: those that transformers loads, held against transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError
from moeify.hub.listing import local_files
from moeify.inspection.inspect import inspect
from moeify.routing.loading import load_model
from moeify.upcycling.upcycle import upcycle
from moeify.upcycling.verify import verify
from tests.tiny import save_tiny

HEAD = "Qwen2ForCausalLM"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def embedding(model: torch.nn.Module) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()  # type: ignore[operator, no-any-return]


def split(folder: Path, scale: float = 1.0) -> Path:
    """The single file of ``folder`` beside an index with two shards of other weights."""
    tensors = {name: scale * tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(document))
    return folder


def both(folder: Path) -> Path:
    """What a push of one file over an older, sharded upload leaves."""
    return split(save_tiny(folder, "qwen2", HEAD), scale=2.0)


def sharded(folder: Path) -> Path:
    split(save_tiny(folder, "qwen2", HEAD), scale=3.0)
    (folder / WEIGHTS).unlink()
    return folder


def trained_in_place(folder: Path) -> Path:
    """``save_pretrained`` removes the shards and leaves the index."""
    model = AutoModelForCausalLM.from_pretrained(sharded(folder))
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(folder)
    assert (folder / INDEX).exists() and len([*folder.glob("*.safetensors")]) == 1
    return folder


def named_in_config(folder: Path) -> Path:
    both(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "x.safetensors")
    whole = {k: v for p in folder.glob("model-*") for k, v in load_file(p).items()}
    save_file({k: v + 1 for k, v in whole.items()}, folder / "mine.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "mine.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("make", [both, sharded, trained_in_place, named_in_config])
def test_the_weights_that_transformers_loads(tmp_path: Path, make: object) -> None:
    folder = make(tmp_path / "dense")  # type: ignore[operator]
    wanted = embedding(AutoModelForCausalLM.from_pretrained(folder))
    assert torch.equal(embedding(load_model(folder)), wanted)
    opened = Checkpoint.open(folder)
    stored = opened["model.embed_tokens.weight"]
    assert torch.equal(load_file(stored.path)[stored.name], wanted)
    report = upcycle(folder, tmp_path / "moe", num_experts=2, noise=0)
    assert torch.equal(embedding(AutoModelForCausalLM.from_pretrained(tmp_path / "moe")), wanted)
    assert verify(folder, tmp_path / "moe").relative_diff < 1e-5
    found = inspect(folder)
    assert found.problems == []
    unused = [note for note in found.notes if "and nothing of" in note]
    assert len(unused) == (make is not sharded) and set(unused) <= set(report.warnings)
    pushed = {file.name for file in local_files(opened, "me/x")[0]}
    loaded = {path.name for path in opened.shards} | ({INDEX} if make is sharded else set())
    assert {name for name in pushed if "safetensors" in name} == loaded


def test_an_index_may_list_a_tied_tensor_that_no_file_holds(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "dense")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("model-*"):
        tensors = load_file(path)
        tensors.pop("lm_head.weight", None)
        save_file(tensors, path, {"format": "pt"})
    report = upcycle(folder, tmp_path / "moe", num_experts=2, noise=0)
    assert any("lists 1 tensors that no file holds: lm_head.weight" in w for w in report.warnings)
    assert verify(folder, tmp_path / "moe").relative_diff < 1e-5
    found = inspect(folder)
    assert found.problems == [] and any("lm_head.weight" in note for note in found.notes)


def test_an_index_that_lists_what_is_needed_and_gone_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    for path in folder.glob("model-*"):
        tensors = load_file(path)
        tensors.pop("model.norm.weight", None)
        save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight' is missing"):
        upcycle(folder, tmp_path / "moe", num_experts=2, dry_run=True)
    assert any("norm.weight" in problem.message for problem in inspect(folder).problems)


ADAPTER = {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": "x"}


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "qwen2", HEAD)
    for name, text in ADAPTER.items():
        (folder / name).write_text(text)
    for command in (Checkpoint.open, load_model, lambda f: upcycle(f, tmp_path / "moe")):
        with pytest.raises(CheckpointError, match="a whole model and an adapter") as caught:
            command(folder)  # type: ignore[operator]
        assert "merge_and_unload" in (caught.value.hint or "")
    assert [problem.kind for problem in inspect(folder).problems] == ["adapter"]
    (folder / "adapter_model.safetensors").unlink()
    report = upcycle(folder, tmp_path / "moe", num_experts=2, noise=0)
    assert any("adapter_config.json" in warning for warning in report.warnings)
    assert not (tmp_path / "moe" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "moe")


@pytest.mark.parametrize("beside", [(), ("config.json",), ("config.json", "pytorch_model.bin")])
def test_an_adapter_for_a_model_is_a_sentence(tmp_path: Path, beside: tuple[str, ...]) -> None:
    for name, text in {**ADAPTER, **dict.fromkeys(beside, "{}")}.items():
        (tmp_path / name).write_text(text)
    for command in (inspect, upcycle):
        with pytest.raises(CheckpointError, match="is an adapter") as caught:
            command(tmp_path)  # type: ignore[operator]
        assert "--experts-from" in (caught.value.hint or "")


def test_a_sentence_encoder_of_old_names_its_folder(tmp_path: Path) -> None:
    save_tiny(tmp_path / "0_Transformer", "bert", "BertModel")
    (tmp_path / "modules.json").write_text("[]")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="keeps its model in 0_Transformer") as caught:
            upcycle(tmp_path, tmp_path.parent / "out")
        assert str(tmp_path / "0_Transformer") in (caught.value.hint or "")
        (tmp_path / "config.json").write_text('{"__version__": "0.3.8"}')
    upcycle(tmp_path / "0_Transformer", tmp_path.parent / "out", dry_run=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.fp16.safetensors", "variant"),
        ("consolidated.safetensors", "rename"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "merge-weights"),
        ("global_step9/mp_rank_00_model_states.pt", "zero_to_fp32.py"),
        ("checkpoint-9/model.safetensors", "name that folder"),
    ],
)
def test_weights_that_no_class_loads_are_named(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for state in ("scheduler.pt", "rng_state_0.pth"):  # as a Trainer leaves them beside
        (tmp_path / state).touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"holds {name}") as caught:
        Checkpoint.open(tmp_path)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("place", ["snapshots", "blobs"])
def test_a_folder_of_links_into_the_hub_cache(tmp_path: Path, place: str) -> None:
    repo = tmp_path / "hub" / "models--me--m"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    save_tiny(snapshot, "qwen2", HEAD)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in [*snapshot.iterdir()]:
        path.rename(blobs / f"sha-{path.name}")
        path.symlink_to(f"../../blobs/sha-{path.name}")
        target = path if place == "snapshots" else blobs / f"sha-{path.name}"
        (folder / path.name).symlink_to(target)
    upcycle(folder, tmp_path / "moe", num_experts=2, noise=0)
    assert verify(folder, tmp_path / "moe").relative_diff < 1e-5
    assert not any(path.is_symlink() for path in (tmp_path / "moe").iterdir())
    (tmp_path / "secret.txt").write_text("secret")
    for target in (tmp_path / "secret.txt", repo / "secret.txt", tmp_path / "blobs" / "x.txt"):
        target.parent.mkdir(exist_ok=True)
        target.write_text("secret")
        (folder / "notes.txt").unlink(missing_ok=True)
        (folder / "notes.txt").symlink_to(target)
        with pytest.raises(CheckpointError, match="link out"):
            upcycle(folder, tmp_path / "again", num_experts=2, noise=0)
