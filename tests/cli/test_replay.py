"""What a moeify.json lists can be done again, to the byte; what stands in the way is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import moeify
from moeify.cli.app import app
from moeify.errors import CheckpointError, ConfigError, MoeifyError
from moeify.provenance.record import recorded_files

DEMO = Path(moeify.__file__).parent / "demo"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of three sources that got other routers, lost an expert and gained one; its sources beside it."""
    place = tmp_path_factory.mktemp("replay")
    for name in ("base", "code", "logs"):
        shutil.copytree(DEMO / "gpt2", place / name)
    experts = {"experts_from": (str(place / "code"), str(place / "logs"), str(place / "base")), "noise": 0.02}
    moeify.upcycle(place / "base", place / "1", **experts, labels=("a", "b", "c"), layers="odd", dtype="bfloat16")
    moeify.attach(place / "1", place / "2", router="normal", seed=3)
    moeify.prune(place / "2", place / "3", drop="all:1")
    moeify.add_experts(place / "3", place / "made", experts=(str(place / "code"),), checksum=True)
    return place / "made"


def test_the_same_steps_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    report = moeify.replay(made / "moeify.json", tmp_path / "new" / "again", checksum=True)
    assert report.steps == ("upcycle", "attach", "prune", "add")
    assert (report.different, report.unsummed, report.warnings, report.trained) == ((), (), (), False)
    assert set(report.same) == set(recorded_files(made))
    weights = sorted(path.name for path in made.glob("*.safetensors"))
    assert len(weights) > 1
    for name in weights:
        assert (tmp_path / "new" / "again" / name).read_bytes() == (made / name).read_bytes()
    records = [json.loads((folder / "moeify.json").read_text()) for folder in (made, tmp_path / "new" / "again")]
    assert records[0] == records[1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["again"]


def test_a_source_that_changed_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent / "code", tmp_path / "code")
    path = tmp_path / "code" / "model.safetensors"
    tensors = load_file(path)
    save_file({n: 2 * t if "mlp.c_fc" in n else t for n, t in tensors.items()}, path, metadata={"format": "pt"})
    arguments = ["replay", str(made), str(tmp_path / "again"), "--sources", f"code={tmp_path / 'code'}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    assert "are not what was recorded, because a source has changed, or versions differ: model-" in done.stderr


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"source": "nowhere"}, {}, "step 1, upcycle, read 'nowhere', which is not here"),
        ({}, {"sources": ("base",)}, "--sources 'base' is not NAME=PATH"),
        ({}, {"sources": ("base=/no/such",)}, "--sources base=/no/such leads to nothing"),
        ({"steps": []}, {}, "lists no steps"),
        ({"steps": [{"command": "bake"}]}, {}, "step 1 is 'bake', which this version of moeify does not know"),
        ({"steps": [{"command": "attach", "options": {"topk": 1}}]}, {}, "step 1, attach, names 'topk'"),
        ({"steps": [{"command": "attach", "options": {"top_k": "1"}}]}, {}, "step 1, attach, gives top_k as '1'"),
        (
            {"steps": [{"command": "warmup", "options": {"dataset": "t.jsonl"}}]},
            {},
            "step 1, warmup, read 't.jsonl', which is not here",
        ),
        (
            {"steps": [{"command": "prune", "options": {"keep": 2, "scores": "x/../../scores.json"}}]},
            {},
            "step 1, prune, read 'x/../../scores.json', which is not here",
        ),
        (
            {"steps": [{"command": "add", "options": {"experts": ["y"]}, "results": {"sources": 5}}]},
            {},
            "step 1, add, read 'y', which is not here",
        ),
    ],
)
def test_what_cannot_be_repeated_is_one_sentence_before_any_work(
    made: Path, tmp_path: Path, changes: dict[str, object], options: dict[str, object], message: str
) -> None:
    place = made.parent / "edited"
    place.mkdir(exist_ok=True)
    record = json.loads((made / "moeify.json").read_text())
    (place / "moeify.json").write_text(json.dumps(record | changes))
    with pytest.raises(MoeifyError) as caught:
        moeify.replay(place / "moeify.json", tmp_path / "out", **options)
    assert message in caught.value.message
    assert isinstance(caught.value, ConfigError | CheckpointError) and caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_record_has_nothing_written_beside_the_output(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by options that no record holds nor by those that name files to write."""
    monkeypatch.chdir(tmp_path)
    place, text = tmp_path / "edited", {"dataset": "text.jsonl", "seq_len": 32}
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "line {n} {"ab " * 40}"}}\n' for n in range(20)))
    shutil.copytree(made.parent / "base", place / "base")
    steps = [
        {"command": "upcycle", "options": {"num_experts": 3, "arch": "own"}},
        {"command": "warmup", "options": text | {"steps": 1, "eval_tokens": 64, "report_to": "tensorboard"}},
        {"command": "prune", "options": text | {"keep": 2, "scores": "x/../scores.json", "max_tokens": 512}},
    ]
    (place / "moeify.json").write_text(json.dumps({"source": "base", "steps": steps}))
    (tmp_path / "x").mkdir()
    moeify.replay(place, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "out", "text.jsonl", "x"]
    assert not list((tmp_path / "x").iterdir())


def test_what_has_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no moeify\.json"):
        moeify.replay(tmp_path, tmp_path / "out")
