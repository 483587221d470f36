"""Tools that ask transformers' plain dicts of class names find our classes in them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moeify.modeling import REMOTE_CODE, modeling_moe
from moeify.modeling.moe_families import FAMILIES, moe_type

NAMES = {
    name: mapping
    for name, mapping in vars(modeling_auto).items()
    if name.endswith("_MAPPING_NAMES") and name != "CONFIG_MAPPING_NAMES"
}


@pytest.mark.parametrize("model_type", REMOTE_CODE)
def test_wherever_the_dense_class_stands(model_type):
    dense = next(name for name in FAMILIES if moe_type(name) == model_type)
    getattr(modeling_moe, REMOTE_CODE[model_type].auto_map["AutoModel"].split(".")[1])
    places = {name: mapping[dense] for name, mapping in NAMES.items() if dense in mapping}
    places = {name: found for name, found in places.items() if found.startswith(FAMILIES[dense].prefix)}
    assert len(places) > 2
    for name, dense_class in places.items():
        ours = NAMES[name][model_type]
        assert ours.replace(FAMILIES[dense].moe_prefix, FAMILIES[dense].prefix, 1) == dense_class, name
    config = CONFIG_MAPPING[dense]
    assert modeling_auto.MODEL_MAPPING[config].__name__ == places["MODEL_MAPPING_NAMES"]


def test_label_smoothing_shifts_labels(pair, tmp_path):
    ids = torch.arange(24).reshape(2, 12)
    batch = {"input_ids": ids, "labels": ids}
    losses = []
    for folder in pair("gpt2"):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        options = TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to=[], use_cpu=True)
        losses.append(Trainer(model=model, args=options).compute_loss(model, dict(batch)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(pair("gpt2")[1])(**batch).loss.item()
    assert losses[1] == pytest.approx(plain, rel=0.1)


def test_a_model_card_names_the_task(pair, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pair("gpt2")[1])
    trainer = Trainer(model=model, args=TrainingArguments(tmp_path, report_to=[], use_cpu=True))
    assert TrainingSummary.from_trainer(trainer).tasks == "text-generation"
