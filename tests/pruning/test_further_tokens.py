"""Layers for predicting further tokens: cut like the others, and run by transformers' speculative decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moeify.inspection.inspect import inspect
from moeify.pruning.prune import prune
from tests.families.published_models import tiny
from tests.warming.mixtures import corpus, with_tokenizer

EXPERTS, LAYERS = 8, 4
Tensors = dict[str, torch.Tensor]


def weights(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _beside(hidden: int, names: dict[str, str]) -> Tensors:
    ones = {names[part]: torch.ones(hidden) for part in ("embedding", "hidden", "last")}
    return ones | {names["joined"]: 0.2 * torch.randn(hidden, 2 * hidden)}


def _deepseek(hidden: int) -> Tensors:
    root = f"model.layers.{LAYERS}."
    names = {"embedding": "enorm", "hidden": "hnorm", "last": "shared_head.norm", "joined": "eh_proj"}
    return _beside(hidden, {part: f"{root}{name}.weight" for part, name in names.items()})


def _mellum(hidden: int) -> Tensors:
    names = {"embedding": "pre_fc_norm_embedding", "hidden": "pre_fc_norm_hidden", "last": "norm", "joined": "fc"}
    return _beside(hidden, {part: f"mtp.{name}.weight" for part, name in names.items()})


FORMS: dict[str, tuple[str, Callable[[int], Tensors], dict[str, object]]] = {
    "deepseek_v3": (f"model.layers.{LAYERS}.", _deepseek, {"n_routed_experts": EXPERTS}),
    "glm4_moe": (f"model.layers.{LAYERS}.", _deepseek, {"n_routed_experts": EXPERTS}),
    "mellum": ("mtp.layers.0.", _mellum, {"num_experts": EXPERTS}),
}


def save(model_type: str, folder: Path, change: Callable[[Tensors], Tensors] = dict, **more: object) -> None:
    """A mixture and, behind its last layer, one for further tokens of the same make."""
    root, beside, options = FORMS[model_type]
    model = tiny(model_type, tied=False, **options, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tensors, last = load_file(folder / "model.safetensors"), f"model.layers.{LAYERS - 1}."
    layer = {root + name.removeprefix(last): t + 0.1 for name, t in tensors.items() if name.startswith(last)}
    save_file(
        tensors | change(layer | beside(model.config.hidden_size)), folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))


@pytest.fixture(autouse=True)
def _published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers knows the layer by its number in the checkpoint that was published."""
    for name in ("DeepseekV3ForCausalLM", "Glm4MoeForCausalLM"):
        here = [rf"model\.layers\.{LAYERS}.*"]
        monkeypatch.setattr(getattr(transformers, name), "_keys_to_ignore_on_load_unexpected", here)


@pytest.mark.parametrize("model_type", FORMS)
@pytest.mark.parametrize("options", [{"by": "aimer"}, {"drop": "all:0,1,4,5"}, {"by": "random", "merge": True}])
def test_they_are_cut_like_the_others_and_still_draft(
    model_type: str, options: dict[str, object], tmp_path: Path
) -> None:
    save(model_type, tmp_path / "moe")
    report = prune(tmp_path / "moe", tmp_path / "out", **options if "drop" in options else {"keep": 4, **options})
    assert report.further_layers == (LAYERS,) and report.warnings == ()
    before, after, root = weights(tmp_path / "moe"), weights(tmp_path / "out"), FORMS[model_type][0]
    assert len([name for name in after if name.startswith(f"{root}mlp.experts.")]) == 3 * 4
    kept = report.kept[LAYERS]
    assert torch.equal(after[f"{root}mlp.gate.weight"], before[f"{root}mlp.gate.weight"][list(kept)])
    for new, old in enumerate(kept if "merge" not in options else ()):
        name = f"{root}mlp.experts.{{}}.up_proj.weight"
        assert torch.equal(after[name.format(new)], before[name.format(old)])
    assert inspect(tmp_path / "out").problems == []
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt, settings = torch.tensor([[5, 9, 17, 33]]), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, use_mtp=True, **settings), model.generate(prompt, **settings))


def test_text_does_not_run_through_them(tmp_path: Path) -> None:
    """Their experts are chosen by their weights then, which is said; by hand each layer may be named."""
    save("glm4_moe", tmp_path / "moe", vocab_size=2049)
    with_tokenizer(tmp_path / "moe")
    text = {"dataset": str(corpus(tmp_path, 10)), "max_tokens": 200, "seq_len": 16}
    reap = prune(tmp_path / "moe", tmp_path / "reap", keep=4, by="reap", **text)
    assert "layer 4, for further tokens: experts were chosen by aimer" in reap.warnings[0]
    by_hand = ";".join(f"{layer}:0,1,4,5" for layer in (1, 2, 3))
    first = prune(tmp_path / "moe", tmp_path / "first", drop=by_hand)
    second = prune(tmp_path / "moe", tmp_path / "second", keep=4, by="aimer")
    assert reap.kept[LAYERS] == first.kept[LAYERS] == second.kept[LAYERS] and first.warnings == reap.warnings
    again = prune(tmp_path / "moe", tmp_path / "again", keep=4, scores=tmp_path / "reap" / "scores.json")
    assert again.kept == reap.kept
    third = prune(tmp_path / "moe", tmp_path / "third", drop=f"{by_hand};{LAYERS}:0,2,5,7")
    assert third.kept[LAYERS] == (1, 3, 4, 6)


def test_those_with_other_numbers_of_experts_and_unwanted_ones_are_left_out(tmp_path: Path) -> None:
    save("deepseek_v3", tmp_path / "moe")
    save("deepseek_v3", tmp_path / "fewer", lambda layer: {n: t for n, t in layer.items() if ".experts.7." not in n})
    for name, options, said in (("moe", {"mtp": False}, ()), ("fewer", {}, ("other numbers of experts",))):
        report = prune(tmp_path / name, tmp_path / f"{name}-out", keep=4, by="random", **options)
        assert report.further_layers == () and LAYERS not in report.kept
        assert len(report.warnings) == len(said) and all(text in report.warnings[0] for text in said)
        assert not any(key.startswith(f"model.layers.{LAYERS}.") for key in weights(tmp_path / f"{name}-out"))
        assert json.loads((tmp_path / f"{name}-out" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_a_block_without_experts_goes_along(tmp_path: Path) -> None:
    """ERNIE 4.5's, which vLLM drafts with: a dense layer in a place of its own."""
    model = tiny("ernie4_5_moe", tied=False, moe_num_experts=EXPERTS)
    model.save_pretrained(tmp_path / "moe")
    tensors, hidden = load_file(tmp_path / "moe" / "model.safetensors"), model.config.hidden_size
    first = "model.layers.0."
    block = {"model.mtp_block.0." + n.removeprefix(first): t + 0.1 for n, t in tensors.items() if n.startswith(first)}
    names = {"embedding": "emb_norm", "hidden": "hidden_norm", "last": "hidden_norm", "joined": "linear_proj"}
    block |= _beside(hidden, {part: f"model.mtp_{name}.0.weight" for part, name in names.items()})
    save_file(tensors | block, tmp_path / "moe" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    for wanted in (True, False):
        out = tmp_path / f"mtp-{wanted}"
        assert prune(tmp_path / "moe", out, keep=4, by="aimer", mtp=wanted).warnings == ()
        found = {name: tensor for name, tensor in weights(out).items() if ".mtp_" in name}
        assert found.keys() == (block.keys() if wanted else set())
        assert all(torch.equal(found[name], block[name]) for name in found)
        assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == wanted
        assert inspect(out).problems == []
