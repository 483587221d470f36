"""`train_only` in plain models and inside the wrappings that training puts around them."""

import tempfile
import warnings

import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import moeify
from moeify.errors import ConfigError
from tests.routing.tiny_mixtures import MODEL_TYPES, mixture

LAYERS = {"bert_moe": 3, "gpt2_moe": 2, "qwen2_moe": 2, "qwen3_moe": 3, "mixtral": 3, "olmoe": 3}


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_router(name):
    return ".router." in name or ".gate." in name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plain_models_of_every_kind(model_type):
    model = mixture(model_type)
    everything = {name for name, _ in model.named_parameters()}
    routers = {name for name in everything if is_router(name) and "shared" not in name}
    experts = {name for name in everything if ".experts." in name}
    assert len(routers) == LAYERS[model_type] and len(experts) >= 2 * len(routers)
    for what, expected in (("routers", routers), ("moe", routers | experts), ("all", everything)):
        assert set(moeify.train_only(model, what)) == expected == trained(model)


def peft_model(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(mixture("bert_moe"), peft.LoraConfig(r=2, **options))


@pytest.mark.parametrize(
    ("options", "routers", "others"),
    [
        ({}, "router.lora_", True),  # the defaults that moeify registers
        ({"modules_to_save": ["router"]}, "router.modules_to_save.default.weight", True),
        ({"target_modules": ["query"], "modules_to_save": ["router"]}, "router.modules_to_save.default.weight", True),
        ({"target_modules": [], "target_parameters": ["experts.up_proj", "experts.down_proj"]}, "router.weight", True),
    ],
)
def test_inside_peft(options, routers, others):
    """Adapters and copies are trained; a router that PEFT would not save is said."""
    model = peft_model(**options)
    adapted = trained(model)
    caught = (
        pytest.warns(UserWarning, match="modules_to_save") if routers == "router.weight" else warnings.catch_warnings()
    )
    with caught:
        names = moeify.train_only(model, "routers")
    assert set(names) == trained(model)
    assert len(names) == (6 if "lora_" in routers else 3) and all(routers in name for name in names)
    assert set(moeify.train_only(model, "all")) == adapted == trained(model)


def test_freezing_by_the_name_of_lora_leaves_saved_routers_out():
    """Scripts that freeze what has no 'lora' in its name train routers as LoRA, and not their copies."""
    for options, found in (({}, True), ({"modules_to_save": ["router"]}, False)):
        model = peft_model(**options)
        by_name = {name for name, _ in model.named_parameters() if "lora" in name}
        assert any(is_router(name) for name in by_name) is found


def test_saved_routers_are_trained_whole_and_come_back(tmp_path):
    model = peft_model(modules_to_save=["router"])
    names = moeify.train_only(model, "routers")
    ids = torch.arange(2, 26).reshape(2, 12)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=ids, labels=ids, output_router_logits=True).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert moved == set(names)
    change = model.get_parameter(names[0]) - before[names[0]]
    assert torch.linalg.matrix_rank(change) > 2  # more than LoRA of rank 2 could
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(mixture("bert_moe"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_several_models_in_one_module_inside_ddp_and_compile():
    linear = nn.Linear(32, 16)
    projector = moeify.MoeProjector.from_linear(linear)
    whole = nn.ModuleDict({"encoder": mixture("bert_moe"), "projector": projector, "head": linear})
    store = tempfile.NamedTemporaryFile()  # noqa: SIM115
    dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(whole)
        names = moeify.train_only(wrapped, "routers")
    finally:
        dist.destroy_process_group()
    assert len(names) == 4 and names[-1] == "module.projector.layers.0.router.weight"
    assert set(names) == trained(wrapped)
    assert moeify.train_only(torch.compile(whole), "routers") == [
        f"_orig_mod.{n.removeprefix('module.')}" for n in names
    ]
    assert set(moeify.train_only(whole["head"], "all")) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("model", "what", "said"),
    [
        (nn.Linear(2, 2), "routers", "Linear holds no mixture"),
        (nn.Linear(2, 2), "moe", "Linear holds no mixture"),
        (nn.Linear(2, 2), "router", "not 'router'"),
    ],
)
def test_what_cannot_be_trained_is_said(model, what, said):
    with pytest.raises(ConfigError, match=said):
        moeify.train_only(model, what)
