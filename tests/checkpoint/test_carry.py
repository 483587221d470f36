"""What goes along with the weights, what stays behind, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moeify.checkpoint.carry import carried, carry_files
from moeify.errors import CheckpointError

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "qwen.tiktoken",
    "source.spm",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "qformer_tokenizer/tokenizer.json",
)
ENCODER = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
    "3_Dense/pytorch_model.bin",
)
PAGES = (
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
    ".gitattributes",
    "generation_config.json",
    "ünïcode.txt",
    "with space.txt",
)
WEIGHTS = (
    "config.json",
    "moeify.json",
    "README.md",
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
    "tf_model.h5",
    "consolidated.safetensors",
    "modeling_x.py",
    "2_Dense/custom.py",
    "1_Pooling/state.pkl",
    ".git/HEAD",
    ".cache/huggingface/x.json",
    "__pycache__/x.pyc",
)
TRAINING = (
    "checkpoint-500/model.safetensors",
    "tmp-checkpoint-9/tokenizer.json",
    "best_model/model.safetensors",
    "epoch_3/config.json",
    "merged/vocab.txt",
    "global_step5/mp_rank_00_model_states.pt",
    "pytorch_model_fsdp_0/__0_0.distcp",
    "wandb/run-1/files/config.yaml",
    "runs/x/events.out.tfevents.1",
    "logs/x.txt",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.onnx",
    "openvino/model.xml",
    "custom_generate/generate.py",
    "0_Transformer/model.safetensors",
    "eval/similarity.csv",
)
LOOSE = (
    "trainer_state.json",
    "all_results.json",
    "train.log",
    "loss.png",
    "adapter_config.json",
    "zero.distcp",
    "events.out.tfevents.2",
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_what_belongs_to_a_model_goes_along_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    kept = (*TOKENIZER, *PROCESSOR, *ENCODER, *PAGES)
    touch(source, *kept, *WEIGHTS, *TRAINING, *LOOSE)
    target.mkdir()
    carry_files(source, target)
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == set(kept)
    assert carried(source).nbytes == sum(p.stat().st_size for p in target.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", [*TRAINING, *LOOSE])
def test_what_stays_behind_is_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, *TOKENIZER, *WEIGHTS, name)
    (note,) = carried(tmp_path).notes
    assert note.endswith(name.partition("/")[0] + "/" * ("/" in name))


def test_of_a_plain_folder_nothing_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *TOKENIZER, *PROCESSOR, *ENCODER, *PAGES, *WEIGHTS)
    assert carried(tmp_path).notes == ()


def test_code_that_a_folder_names_is_said(tmp_path: Path) -> None:
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (note,) = carried(tmp_path).notes
    assert "AutoTokenizer in tokenizer_config.json" in note and "trust_remote_code" in note


@pytest.mark.parametrize("name", ["outside.txt", "1_Pooling"])
def test_links_out_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "elsewhere", "secret")
    source = tmp_path / "source"
    source.mkdir()
    target = tmp_path / "elsewhere" if name == "1_Pooling" else tmp_path / "elsewhere" / "secret"
    (source / name).symlink_to(target)
    with pytest.raises(CheckpointError, match="link out"):
        carried(source)


def test_links_that_stay_behind_are_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "model" / "x").mkdir(parents=True)
    (tmp_path / "model" / "latest").symlink_to("x")
    (tmp_path / "model" / "wandb").symlink_to(tmp_path)
    assert carried(tmp_path / "model").names == ()


def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        carried(tmp_path)
