"""Depth 1: what the headers say, and every problem that they show in one run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.errors import CheckpointError
from moeify.inspection.inspect import inspect
from moeify.upcycling.upcycle import upcycle
from tests.families.published_models import save, tiny
from tests.inspection.sparse_checkpoint import ACTIVE, TOTAL, write_sparse
from tests.real.checkpoints import demo_gpt2
from tests.real.hub_shapes import bert_base_uncased_like

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("qwen3_moe", tied=False), tmp_path_factory.mktemp("qwen3_moe"))


def _changed(whole: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    target = folder / "changed"
    shutil.copytree(whole, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def _configured(whole: Path, folder: Path, **keys: object) -> Path:
    target = folder / "configured"
    shutil.copytree(whole, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | keys))
    return target


def _split(whole: Path, folder: Path) -> Path:
    """The same checkpoint in two shards with an index."""
    target = folder / "split"
    shutil.copytree(whole, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, target / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


def _problems(folder: Path) -> dict[str, str]:
    said: dict[str, str] = {}
    for problem in inspect(folder).problems:
        said[problem.kind] = f"{said.get(problem.kind, '')} {problem.message}"
    return said


EXPERT = "model.layers.2.mlp.experts.1.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda t: t.pop(EXPERT), "missing_experts", "layer 2: mlp.experts.*.up_proj.weight is missing for expert 1"),
        (
            lambda t: [t.pop(n) for n in list(t) if "layers.2.mlp.experts.3." in n],
            "expert_count",
            "layer 2: 3 experts in the files, config.json says 4",
        ),
        (
            lambda t: t.update({EXPERT.replace(".1.", ".4.", 1): torch.zeros(8, 16)}),
            "expert_count",
            "5 experts in the files, config.json says 4",
        ),
        (lambda t: t.pop("model.layers.3.mlp.gate.weight"), "missing_router", "layer 3: no router"),
        (
            lambda t: t.update({"model.layers.3.mlp.gate.weight": torch.zeros(5, 16)}),
            "shape",
            "router has shape [5, 16]",
        ),
        (lambda t: t.update({EXPERT: torch.zeros(16, 8)}), "shape", "has shape [16, 8], config.json says [8, 16]"),
        (
            lambda t: t.update({"model.layers.0.mlp.strange.weight": torch.zeros(1)}),
            "unknown_tensor",
            "model.layers.*.mlp.strange.weight",
        ),
        (
            lambda t: t.update({"model.layers.9.input_layernorm.weight": torch.zeros(16)}),
            "unknown_tensor",
            "model.layers.*.input_layernorm.weight",
        ),
        (lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"), "missing_tensor", "self_attn.q_proj.weight"),
        (lambda t: t.pop("model.norm.weight"), "missing_tensor", "norm.weight"),
        (lambda t: t.pop("lm_head.weight"), "missing_tensor", "lm_head.weight"),
    ],
)
def test_damage_is_named(
    whole: Path, tmp_path: Path, change: Callable[[Tensors], object], kind: str, said: str
) -> None:
    assert said in _problems(_changed(whole, tmp_path, change))[kind]


def test_every_problem_in_one_run(whole: Path, tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors[EXPERT], tensors["model.layers.3.mlp.gate.weight"]
        tensors["extra"] = torch.zeros(1)

    folder = _changed(whole, tmp_path, damage)
    assert _problems(folder).keys() == {"missing_experts", "missing_router", "unknown_tensor"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_experts": 8}, "num_experts = 8, num_local_experts = 4"),
        ({"num_local_experts": 8}, "4 experts in the files, config.json says 8"),
        ({"num_experts_per_tok": 9}, "9 experts of 4"),
        ({"num_local_experts": None}, "no num_local_experts or num_experts"),
        ({"num_local_experts": "four"}, "must be a positive integer"),
        ({"hidden_size": 32}, "config.json says [4, 32]"),
        ({"num_hidden_layers": 6}, "no experts in the files"),
        ({"mlp_only_layers": 7}, "config.json"),
        ({"num_hidden_layers": 2_000_000_000}, "up to 10000, not 2000000000"),
        ({"num_local_experts": 2_000_000_000}, "up to 100000, not 2000000000"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_config_that_disagrees(whole: Path, tmp_path: Path, keys: dict[str, object], said: str) -> None:
    report = inspect(_configured(whole, tmp_path, **keys))
    assert any(said in problem.message for problem in report.problems)


def test_expert_count_comes_from_all_shards(whole: Path, tmp_path: Path) -> None:
    report = inspect(_split(whole, tmp_path))
    assert [layer.num_experts for layer in report.layers] == [4, 4, 4]
    assert (report.problems, len(report.shards)) == ([], 2)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda f: _truncate(f / "model-00002-of-00002.safetensors"), "damaged_shard"),
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "missing_shard"),
        (lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(b"x"), "damaged_shard"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "index"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index"),
        (lambda f: shutil.copy(f / "model-00001-of-00002.safetensors", f / "model-x.safetensors"), "index"),
        (lambda f: (f / "config.json").unlink(), "config"),
        (lambda f: (f / "config.json").write_text("[]"), "config"),
        (lambda f: (f / "moeify.json").write_text("["), "provenance"),
    ],
)
def test_damaged_files_are_reported_beside_what_is_left(
    whole: Path, tmp_path: Path, damage: Callable[[Path], object], kind: str
) -> None:
    folder = _split(whole, tmp_path)
    damage(folder)
    report = inspect(folder)
    assert kind in {problem.kind for problem in report.problems}
    assert report.num_tensors > 0


def test_duplicate_and_misplaced_tensors(whole: Path, tmp_path: Path) -> None:
    folder = _split(whole, tmp_path)
    both = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(both)
    moved = load_file(folder / "model-00001-of-00002.safetensors")["lm_head.weight"]
    dropped = next(iter(sorted(tensors)))
    save_file({n: t for n, t in tensors.items() if n != dropped} | {"lm_head.weight": moved}, both)
    problems = _problems(folder)
    assert "lm_head.weight" in problems["duplicate_tensor"]
    assert dropped.endswith("experts.1.down_proj.weight")
    assert any("layer 2" in said and "expert 1" in said for said in problems.values()), problems


def test_truncated_shard_still_lists_its_tensors(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    _truncate(folder / "model.safetensors")
    report = inspect(folder)
    assert [problem.kind for problem in report.problems] == ["damaged_shard"]
    assert report.params_total == inspect(whole).params_total


@pytest.mark.parametrize("content", [{}, {"pytorch_model.bin": b"x"}, {"config.json": b"{}"}])
def test_nothing_to_read_is_an_error(tmp_path: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def test_quantised_side_tensors_are_counted_as_such(tmp_path: Path) -> None:
    folder = save(tiny("gpt_oss", tied=False, intermediate_size=32, hidden_size=32), tmp_path / "q")
    before = inspect(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = tensors.pop(name).mT.shape
        tensors[f"{name}_blocks"] = torch.zeros(experts, rows, columns // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(experts, rows, columns // 32, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    after = inspect(folder)
    assert after.problems == []
    assert (after.params_total, after.params_active) == (before.params_total, before.params_active)
    assert after.parts["quantization"]["parameters"] == 0
    assert after.parts["experts"]["bytes"] < before.parts["experts"]["bytes"]


def test_block_scales_beside_fp8_weights(tmp_path: Path) -> None:
    folder = save(tiny("deepseek_v3", tied=False), tmp_path / "q")
    before = inspect(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors")
    after = inspect(folder)
    assert (after.problems, after.params_total) == ([], before.params_total)
    assert after.params_active == before.params_active


def test_dense_checkpoint_shows_what_upcycling_gives(tmp_path: Path) -> None:
    report = inspect(demo_gpt2())
    made = upcycle(demo_gpt2(), tmp_path / "moe", num_experts=8, top_k=2)
    assert (report.kind, report.problems) == ("dense", [])
    assert report.params_total == made.params_dense
    outlook = report.upcycled
    assert outlook is not None
    assert (outlook.params_total, outlook.params_active) == (made.params_total, made.params_active)
    assert outlook.nbytes == inspect(tmp_path / "moe").bytes


def test_tensors_of_other_classes_are_not_counted(tmp_path: Path) -> None:
    """Like bert-base-uncased, it holds a pooler and a head that its masked-LM class lacks."""
    source = bert_base_uncased_like(tmp_path / "dense")
    written = upcycle(source, tmp_path / "moe", num_experts=2)
    report = inspect(tmp_path / "moe")
    assert (report.params_total, report.params_active) == (written.params_total, written.params_active)
    assert not report.problems


def test_what_moeify_wrote_names_its_source(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    report = inspect(tmp_path / "moe")
    assert report.problems == []
    assert report.provenance is not None
    assert [step.command for step in report.provenance.steps] == ["upcycle"]
    assert re.search(r"^stops dense classes +0 +4 B", _run(str(tmp_path / "moe")).stdout, re.M)


def test_what_a_broken_config_does_not_say_is_left_out(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config | {"n_layer": 0}))
    done = _run(str(tmp_path / "moe"))
    assert done.returncode == 3
    assert "- config.json: n_layer must be a positive integer up to 10000, not 0" in done.stdout
    assert "None" not in done.stdout


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"n_layer": 2_000_000_000}, "up to 10000, not 2000000000"),
        ({"n_layer": 6}, "are missing"),
        ({"n_embd": 64}, "of another shape"),
        ({"architectures": ["Other"]}, "no gpt2 class"),
    ],
)
def test_dense_config_that_disagrees(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    report = inspect(_configured(demo_gpt2(), tmp_path, **keys))
    assert any(said in problem.message for problem in report.problems)
    assert report.upcycled is None


def test_unknown_model_type_is_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "yi"}')
    report = inspect(tmp_path)
    assert (report.kind, report.params_total, report.problems) == ("unknown", 6, [])
    assert "yi" in report.notes[0]


def test_json_is_the_same_byte_for_byte(whole: Path) -> None:
    runs = [_run(str(whole), "--json", PYTHONHASHSEED=str(seed)).stdout for seed in (1, 2)]
    assert runs[0] == runs[1]
    assert json.loads(runs[0])["schema"] == "moeify.inspect/1"


@pytest.mark.parametrize(
    ("condition", "code"), [(None, 3), ("problems>0", 3), ("problems>5", 0), ("dead>0", 1), ("nonsense", 1)]
)
def test_fail_on(whole: Path, tmp_path: Path, condition: str | None, code: int) -> None:
    folder = _changed(whole, tmp_path, lambda t: t.pop(EXPERT))
    done = _run(str(folder), *(["--fail-on", condition] if condition else []))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [80, 100])
def test_tables_fit(whole: Path, columns: int) -> None:
    shown = _run(str(whole), COLUMNS=str(columns)).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "4 of 8 neurons, top-2" in shown


_MEASURED = (
    "import sys; from moeify.inspection.inspect import inspect;"
    " report = inspect(sys.argv[1]); assert not {'torch', 'numpy', 'transformers'} &"
    " set(sys.modules);"
    " print(report.params_total, report.params_active, len(report.problems),"
    " next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if 'HWM' in line))"
)


def test_18867_tensors_in_16_shards(tmp_path: Path) -> None:
    folder = write_sparse(tmp_path)
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, active, problems, peak_mib = map(int, done.stdout.split())
    assert (total, active, problems) == (TOTAL, ACTIVE, 0)
    assert peak_mib <= 57  # 60 MB


def test_command_line_imports_no_torch(whole: Path) -> None:
    code = (
        "import sys; from moeify.cli.app import app\n"
        "try: app(['inspect', sys.argv[1], '--json'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moeify", "inspect", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
