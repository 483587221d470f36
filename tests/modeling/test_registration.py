"""transformers' auto classes know the models once they are registered, in any order."""

import pickle

import pytest
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from moeify.modeling import REMOTE_CODE, registration
from moeify.modeling.configuration_moe import BertMoeConfig
from moeify.modeling.moe_families import FAMILIES, moe_type
from tests.modeling.checkpoints import HEADS, REPOSITORY, run_elsewhere, write_checkpoint

REGISTER = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})

def register():
    # Not through `import moeify`, whose own imports are its own affair.
    from moeify.modeling.registration import register_lazily
    register_lazily()
    register_lazily()
"""

MOEIFY_FIRST = """
before = set(sys.modules)
register()
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not loaded & {"torch", "transformers", "numpy", "datasets"}, loaded
# BERT itself imports the auto modules, half-way through its own import.
import transformers.models.bert.modeling_bert
names = sys.modules["transformers.models.auto.modeling_auto"].MODEL_MAPPING_NAMES
assert names["bert_moe"] == "BertMoeModel"
assert "moeify.modeling.modeling_bert_moe" not in sys.modules
"""

TRANSFORMERS_FIRST = """
import transformers.pipelines
from transformers import AutoTokenizer, BertModel
register()
assert "moeify.modeling.modeling_bert_moe" not in sys.modules
"""

LOAD = """
import json, pathlib, torch, transformers
from transformers import AutoConfig, AutoTokenizer, pipeline

for name in sys.argv[1:]:
    folder = pathlib.Path(name)
    batch, expected = torch.load(folder.with_suffix(".expected"))
    assert type(AutoConfig.from_pretrained(folder)).__module__.startswith("moeify.")
    model = transformers.AutoModelForPreTraining.from_pretrained(folder)
    assert type(model).__module__.startswith("moeify.")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], expected)
    # What is saved from here loads where moeify is not installed.
    again = folder.with_name(folder.name + "-again")
    model.save_pretrained(again)
    assert {p.name for p in folder.glob("*.py")} == {p.name for p in again.glob("*.py")}
    bert = "bert" in folder.name
    task, text = ("fill-mask", "a [MASK] c") if bert else ("text-generation", "abc")
    print(type(AutoTokenizer.from_pretrained(folder)).__name__)
    pipe = pipeline(task, model=str(folder))
    assert type(pipe.model).__module__.startswith("moeify.")
    assert pipe(text, **({} if bert else {"max_new_tokens": 3}))
"""


@pytest.mark.parametrize("order", [MOEIFY_FIRST, TRANSFORMERS_FIRST], ids=["first", "last"])
def test_loading_without_trust_remote_code(order, tmp_path):
    for model_type in HEADS:
        write_checkpoint(model_type, tmp_path / model_type)
    code = REGISTER + order + LOAD
    printed = run_elsewhere(code, *(tmp_path / name for name in HEADS), cache=tmp_path)
    assert printed.splitlines() == ["BertTokenizer", "GPT2Tokenizer"]


@pytest.mark.parametrize("model_type", REMOTE_CODE)
def test_every_auto_class_of_the_dense_model(model_type):
    dense = next(name for name in FAMILIES if moe_type(name) == model_type)
    expected = {
        name: auto._model_mapping._model_mapping[dense]
        for name, auto in vars(modeling_auto).items()
        if name.startswith("AutoModel") and dense in auto._model_mapping._model_mapping
    }
    # AutoModelForDecision has another model's class for Qwen2.
    expected = {name: found for name, found in expected.items() if found.startswith(FAMILIES[dense].prefix)}
    found = {
        name: target.split(".")[1].replace(FAMILIES[dense].moe_prefix, FAMILIES[dense].prefix, 1)
        for name, target in REMOTE_CODE[model_type].auto_map.items()
        if name != "AutoConfig"
    }
    assert found == expected


def test_registered_classes_in_this_process():
    registration.register_lazily()
    registration.register_lazily()
    finders = [type(finder).__name__ for finder in registration.sys.meta_path]
    assert finders.count("_PostImportFinder") == 1
    assert CONFIG_MAPPING["bert_moe"] is BertMoeConfig
    for code in REMOTE_CODE.values():
        for auto, target in code.auto_map.items():
            if auto == "AutoConfig":
                continue
            mapping = getattr(modeling_auto, auto)._model_mapping
            module, name = target.split(".")
            config_name = code.auto_map["AutoConfig"].split(".")[1]
            configs = [c for c in mapping if c.__name__ == config_name]
            assert len(configs) == 1
            assert mapping[configs[0]].__name__ == name
            assert mapping[configs[0]].__module__ == f"moeify.modeling.{module}"
            assert mapping._model_mapping[mapping[configs[0]].config_class.model_type] == name
            assert pickle.loads(pickle.dumps(mapping))[configs[0]] is mapping[configs[0]]
    assert TOKENIZER_MAPPING[BertMoeConfig].__name__ == "BertTokenizer"


def test_an_unknown_transformers_is_a_warning():
    with pytest.warns(UserWarning, match="load them with trust_remote_code=True"):
        registration._act(registration._register_models, registration)
