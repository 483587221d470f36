"""Checkpoints load where moeify is not installed."""

import ast
import json

from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from moeify.modeling import REMOTE_CODE
from tests.modeling.checkpoints import HEADS, run_elsewhere, write_checkpoint

TOKEN = {
    "bert_moe": {"slices": 2, "router_bias": True},
    "gpt2_moe": {"null_experts": 3, "null_kinds": ["zero", "copy", "constant"]},
}
LOAD = """
import json, pathlib, sys, torch, transformers
from transformers import AutoConfig, AutoTokenizer

for name in sys.argv[1:]:
    folder = pathlib.Path(name)
    batch, expected = torch.load(folder.with_suffix(".expected"))
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    for auto, target in auto_map.items():
        if auto == "AutoConfig" or (name.endswith("sequence") and auto != "AutoModel"):
            continue
        model, report = getattr(transformers, auto).from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True
        )
        assert type(model).__name__ == target.split(".")[1], auto
        assert type(model).__module__.startswith("transformers_modules."), auto
        names = getattr(transformers, auto)._model_mapping._model_mapping
        assert names[model.config.model_type] == type(model).__name__, auto
        assert not report["mismatched_keys"], report
        assert not any("experts" in key or "router" in key for key in report["missing_keys"])
        if auto in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining"):
            assert not report["missing_keys"], (auto, report)
        if auto in ("AutoModelForMaskedLM", "AutoModelForCausalLM"):
            assert not report["unexpected_keys"], (auto, report)

    auto = transformers.AutoModelForPreTraining
    model = auto.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], expected)
        assert len(model(**batch, output_router_logits=True).router_logits) == 2

    # Saved again, from the copied code, it is as complete as it was.
    again = folder.with_name(folder.name + "-again")
    model.save_pretrained(again)
    assert {p.name for p in folder.glob("*.py")} == {p.name for p in again.glob("*.py")}
    assert json.loads((again / "config.json").read_text())["auto_map"] == auto_map
    model = auto.from_pretrained(again, trust_remote_code=True, experts_implementation="grouped_mm")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], expected, atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    print(type(tokenizer).__name__, tokenizer.tokenize("ab c"))
assert "moeify" not in sys.modules
"""


def test_every_head_loads_without_moeify(tmp_path):
    folders = []
    for model_type in HEADS:
        for unit, options in {"token": TOKEN[model_type], "sequence": {"router_bias": True}}.items():
            folders.append(tmp_path / f"{model_type}-{unit}")
            write_checkpoint(model_type, folders[-1], route_by=unit, **options)
    printed = run_elsewhere(LOAD, *folders, cache=tmp_path)
    # GPT-2 merges nothing here, so each letter is one token.
    bert, gpt2 = "BertTokenizer ['[UNK]', 'c']", "GPT2Tokenizer ['a', 'b', '\u0120', 'c']"
    assert printed.splitlines() == [bert, bert, gpt2, gpt2]


def test_files_are_all_that_transformers_will_copy():
    code = REMOTE_CODE["bert_moe"]
    modeling = next(path for path in code.paths if path.name.startswith("modeling"))
    found = {path.rsplit("/", 1)[-1] for path in get_relative_import_files(str(modeling))}
    assert found | {modeling.name} == set(code.files)


def test_files_import_torch_transformers_and_one_another_only():
    code = REMOTE_CODE["bert_moe"]
    standard = {"collections", "contextvars", "dataclasses", "functools", "inspect", "math", "re", "types", "typing"}
    for path in code.paths:
        assert set(get_imports(path)) <= {"torch", "transformers"} | standard, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                # `from . import x` and `from ..x import y` would not be found and copied.
                assert node.level == 1, path
                assert node.module, path
                assert f"{node.module}.py" in code.files, path
        assert len(path.read_text().splitlines()) < 700


def test_auto_map_is_plain_data():
    for code in REMOTE_CODE.values():
        assert json.loads(json.dumps(dict(code.auto_map))) == code.auto_map
        for target in code.auto_map.values():
            module, _ = target.split(".")
            assert f"{module}.py" in code.files
