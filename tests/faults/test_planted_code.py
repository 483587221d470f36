"""Code in a checkpoint is never run and never handed on: a payload in every place."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.hostile_seeds import INDEX
from tests.faults.in_process import moeify
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny

AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoTokenizer", "AutoProcessor")


class Payload:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for family in ("bert", "gpt2", "qwen3"):
        write_tokenizer(save_tiny(folder / family, family), family)
        made = moeify("upcycle", folder / family, folder / f"{family}-moe", "--experts", 4)
        assert made.code == 0, made.text
    (folder / "text.txt").write_text("the cat sat on the mat 1 2 3\n\n" * 60)
    return folder


def plant(folder: Path, mark: Path) -> None:
    """Code in every place where transformers, datasets or torch would look for some."""
    source = f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\nclass Evil: pass\n"
    for name in (
        "evil.py",
        "modeling_moe.py",
        "moe_layers.py",
        "configuration_moe.py",
        "tokenization_evil.py",
        "__init__.py",
        "conftest.py",
        "sitecustomize.py",
        "setup.py",
        "moeify.py",
        "custom_generate/generate.py",
        "text.py",
        "json.py",
        "0_Evil/evil.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    named = {
        "auto_map": dict.fromkeys(AUTO, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "custom_pipelines": {"x": {"impl": "evil.Evil", "pt": ["AutoModel"]}},
        "attn_implementation": "someone/evil-kernel",
        "_attn_implementation": "someone/evil-kernel",
    }
    for kind in (
        "config",
        "tokenizer_config",
        "generation_config",
        "preprocessor_config",
        "processor_config",
        "0_Evil/config",
    ):
        name = f"{kind}.json"
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**found, **named}))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder), "auto_mapping": None})
    )
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "model.pkl",
        "tokenizer.pickle",
        "x.joblib",
        "0_Evil/x.pkl",
        "scores.pkl",
    ):
        (folder / name).write_bytes(_torch_file(mark) if "model" in name else pickle.dumps(Payload(mark)))
    np.savez(folder / "scores.npz", x=np.array([Payload(mark)], dtype=object))


def _torch_file(mark: Path) -> bytes:
    """What torch.save writes, with the payload as its content."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(mark), protocol=2))
        file.writestr("archive/version", "3\n")
    return content.getvalue()


def test_the_payloads_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()
    source = tmp_path / "planted"
    source.mkdir()
    plant(source, tmp_path / "other")
    exec((source / "evil.py").read_text(), {})
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3"])
def test_no_command_runs_or_carries_code(
    work: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, dense, moe = tmp_path / "mark", tmp_path / "dense", tmp_path / "moe"
    for folder, origin in ((dense, family), (moe, f"{family}-moe")):
        shutil.copytree(work / origin, folder)
        plant(folder, mark)
    monkeypatch.chdir(moe)  # whatever lies in the working directory is no module either
    text, out = work / "text.txt", tmp_path / "out"
    small = ["--max-tokens", 200, "--seq-len", 16]
    for line in (
        ["inspect", moe, "--weights", "--reference", dense],
        ["inspect", moe, "--dataset", text, *small, "--vocabulary"],
        ["upcycle", dense, out],
        ["attach", moe, out],
        ["extract", moe, out, "--expert", 1],
        ["prune", moe, out, "--keep", 2, "--dataset", text, *small],
        ["prune", moe, out, "--keep", 1, "--dense", "--by", "random"],
        ["warmup", moe, out, "--dataset", text, "--steps", 1, "--seq-len", 16, "--reference", dense, "--batch", 2],
        ["verify", dense, moe, "--text", text, "--seq-len", 8],
    ):
        done = moeify(*line)
        assert done.code == 0 or (line[0], done.code) == ("inspect", 3), done.text
        assert not mark.exists(), f"{line[0]} ran the payload"
        if out.exists():
            assert_clean(out)
            shutil.rmtree(out)


def assert_clean(out: Path) -> None:
    """Only moeify's own Python files, and JSON that names nothing else."""
    own = {path.name for path in Path(moeify_modeling()).glob("*.py")}
    for path in out.rglob("*"):
        assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib"), path
        if path.suffix == ".py":
            assert path.read_bytes() == (Path(moeify_modeling()) / path.name).read_bytes()
            assert path.name in own and path.parent == out
        if path.suffix == ".json" and path.name != INDEX:
            assert "evil" not in path.read_text().replace("0_Evil", ""), path


def moeify_modeling() -> str:
    import moeify.modeling

    return str(Path(moeify.modeling.__file__).parent)


def test_a_pickle_or_script_is_no_scores_and_no_dataset(work: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    plant(tmp_path, mark)
    for name in ("scores.pkl", "scores.npz"):
        done = moeify(
            "prune", work / "gpt2-moe", tmp_path / "out", "--keep", 2, "--by", "reap", "--scores", tmp_path / name
        )
        assert done.code == 1 and not mark.exists(), done.text
    for name in ("evil.py", ".", "model.pkl", "scores.npz", "pytorch_model.bin"):
        done = moeify("warmup", work / "gpt2-moe", tmp_path / "out", "--dataset", tmp_path / name)
        assert done.code == 1 and not mark.exists(), done.text
        assert "bug in moeify" not in done.err


def test_only_a_pickle_is_refused_with_the_way_out(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(work / "gpt2" / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(_torch_file(tmp_path / "mark"))
    for command in ("upcycle", "inspect", "attach"):
        done = moeify(command, folder)
        assert done.code == 1 and "pytorch_model.bin" in done.err, done.text
    assert not (tmp_path / "mark").exists()


def test_a_class_that_only_the_code_defines_is_refused(work: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    shutil.copytree(work / "gpt2-moe", folder)
    plant(folder, mark)
    config = json.loads((folder / "config.json").read_text())
    for changed in (
        {"model_type": "evil"},
        {"architectures": ["Evil"]},
        {"architectures": ["AutoModel"]},
        {"architectures": ["pipeline"]},
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        done = moeify("verify", work / "gpt2", folder)
        assert done.code == 1 and "bug" not in done.err, done.text
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for changed in (
        {"tokenizer_class": "Evil"},
        {"tokenizer_file": "/etc/passwd"},
        {"vocab_file": "/etc/passwd", "tokenizer_class": "BertTokenizer"},
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | changed))
        done = moeify("inspect", folder, "--dataset", work / "text.txt", "--seq-len", 16)
        assert done.code in (0, 1, 3) and "bug" not in done.err, done.text
    assert not mark.exists()
