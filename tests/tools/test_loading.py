"""torch.compile, bf16, accelerate's device_map, and saving and publishing from transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from ..elsewhere import python_without_moeify
from ..hub.client import Client
from ..hub.stand_in import running_hub

AUTO = {
    "bert": AutoModelForMaskedLM,
    "gpt2": AutoModelForCausalLM,
    "qwen2": AutoModelForCausalLM,
    "qwen3": AutoModelForCausalLM,
}
PUBLISH = """
import sys, moeify
from transformers import AutoModelForMaskedLM
AutoModelForMaskedLM.from_pretrained(sys.argv[1]).push_to_hub("user/from-transformers")
"""
LOAD = """
import sys, torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained("user/from-transformers", trust_remote_code=True)
with torch.no_grad():
    logits = model(input_ids=torch.arange(12)[None]).logits
torch.save(logits, sys.argv[1])
"""


@pytest.fixture(params=AUTO)
def family(request):
    return request.param


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(12)[None]).logits.float()


def test_compiled_and_grouped(family, pair):
    dense, moe = pair(family)
    expected = logits(AUTO[family].from_pretrained(dense).eval())
    options = {"experts_implementation": "grouped_mm"}
    model = AUTO[family].from_pretrained(moe, **options).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), expected, atol=1e-4, rtol=1e-4)


def test_bf16_device_map_and_saving_again(family, pair, tmp_path):
    dense, moe = pair(family)
    expected = logits(AUTO[family].from_pretrained(dense, dtype=torch.bfloat16))
    model = AUTO[family].from_pretrained(moe, dtype=torch.bfloat16, device_map="auto").eval()
    found = logits(model).cpu()
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    model.save_pretrained(tmp_path / "again")
    again = AUTO[family].from_pretrained(tmp_path / "again", dtype="auto", device_map="auto").eval()
    assert torch.equal(logits(again).cpu(), found)


def test_offloaded_layers(family, pair, tmp_path):
    """accelerate keeps half of the model on disk and fetches it layer by layer."""
    _, moe = pair(family)
    whole = AUTO[family].from_pretrained(moe)
    budget = sum(p.numel() * p.element_size() for p in whole.parameters()) // 2
    model = (
        AUTO[family]
        .from_pretrained(moe, device_map="auto", max_memory={"cpu": budget}, offload_folder=tmp_path / "offload")
        .eval()
    )
    assert "disk" in model.hf_device_map.values()
    torch.testing.assert_close(logits(model), logits(whole.eval()), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_push_to_hub_from_transformers(pair, tmp_path):
    dense, moe = pair("bert")
    with running_hub() as hub:
        client = Client(hub, tmp_path / "home")
        done = client.run("-c", PUBLISH, moe)
        assert done.returncode == 0, done.stderr
        files = hub.repositories["user/from-transformers"].files()
        assert {"model.safetensors", "modeling_moe.py", "moe_layers.py"} <= files.keys()
        python = python_without_moeify(tmp_path / "venv")
        elsewhere = Client(hub, tmp_path / "elsewhere", token=None, python=python)
        done = elsewhere.run("-c", LOAD, tmp_path / "logits.pt")
        assert done.returncode == 0, done.stderr
    expected = logits(AUTO["bert"].from_pretrained(dense).eval())
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=1e-5)


def test_tokenizer_is_the_dense_one(family, pair):
    dense, moe = pair(family)
    text = "The quick brown fox, 1987!"
    expected, found = (AutoTokenizer.from_pretrained(folder) for folder in (dense, moe))
    assert type(found) is type(expected)
    assert found(text)["input_ids"] == expected(text)["input_ids"]
