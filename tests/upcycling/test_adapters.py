"""LoRA adapters as experts, held against PEFT's own merge."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import moeify
from moeify.errors import CheckpointError
from moeify.routing.loading import load_model
from tests.tiny import LM_HEADS, save_tiny, state, tree
from tests.upcycling.specialists import dense_view, ffn_tensors, spoil

FFN = {
    "bert": [r".*intermediate\.dense", r".*layer\.\d+\.output\.dense"],
    "gpt2": [r".*mlp\.c_fc", r".*mlp\.c_proj"],
    "qwen2": [r".*mlp\.(gate|up|down)_proj"],
    "qwen3": [r".*mlp\.(gate|up|down)_proj"],
}
PATTERNS = {
    "bert": ("layer.1.intermediate.dense", "output.dense"),
    "gpt2": ("h.1.mlp.c_fc", "c_proj"),
    "qwen2": ("layers.1.mlp.up_proj", "down_proj"),
    "qwen3": ("layers.1.mlp.up_proj", "down_proj"),
}
ATTENTION = {"bert": "query", "gpt2": "c_attn", "qwen2": "q_proj", "qwen3": "q_proj"}


def save_adapter(base: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    """A PEFT adapter with random matrices on the checkpoint in ``base``."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_model(base, "float32"), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3 if "lora_" in name else 0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, folder: Path) -> Path:
    """What PEFT makes of both."""
    model = peft.PeftModel.from_pretrained(load_model(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return folder


def targets(family: str) -> str:
    return "|".join(FFN[family])


@pytest.fixture(scope="module", params=list(LM_HEADS))
def base(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return request.param, save_tiny(folder, request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("qwen") / "base", "qwen3")


def experts(base: Path, sources: list[Path], tmp_path: Path, number: int, **options: Any) -> Path:
    """Expert ``number`` of a mixture of ``sources`` as a dense checkpoint."""
    moeify.upcycle(base, tmp_path / "moe", experts_from=sources, force=True, **options)
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=number, force=True)
    return tmp_path / "dense"


def assert_ffn_equal(found: Path, wanted: Path, **tolerance: float) -> None:
    expected = ffn_tensors(wanted)
    for name, tensor in ffn_tensors(found).items():
        torch.testing.assert_close(tensor, expected[name], **tolerance)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_an_adapter_is_merged_as_peft_merges_it(base: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    family, folder = base
    special, ending = PATTERNS[family]
    options: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": targets(family)}
    if kind == "rslora":
        options["use_rslora"] = True
    if kind == "patterns":
        options |= {"rank_pattern": {special: 2, ending: 8}, "alpha_pattern": {special: 1.5}}
    adapter = save_adapter(folder, tmp_path / "adapter", **options)
    wanted = merged(folder, adapter, tmp_path / "merged")
    assert_ffn_equal(experts(folder, [folder, adapter], tmp_path, 1), wanted, rtol=1e-5, atol=1e-6)
    moved = ffn_tensors(wanted)
    assert any(not torch.equal(t, moved[name]) for name, t in ffn_tensors(folder).items())
    moeify.extract(tmp_path / "moe", tmp_path / "first", expert=0)
    assert_ffn_equal(tmp_path / "first", folder, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny(tmp_path / "base", "gpt2", dtype=dtype)
    adapter = save_adapter(folder, tmp_path / "adapter", target_modules=targets("gpt2"))
    wide = merged(save_wide(folder, tmp_path / "wide"), adapter, tmp_path / "merged")
    expected = ffn_tensors(wide)
    for name, tensor in ffn_tensors(experts(folder, [folder, adapter], tmp_path, 1)).items():
        assert tensor.dtype == getattr(torch, dtype)
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-2, atol=1e-6)


def save_wide(folder: Path, wide: Path) -> Path:
    load_model(folder, "float32").save_pretrained(wide)
    return wide


def test_the_matrices_are_added_across_chunks(tmp_path: Path) -> None:
    """Tensors larger than what is made at a time, and rows that chunks cut through."""
    sizes = {"hidden_size": 96, "intermediate_size": 4099, "num_hidden_layers": 1}
    folder = save_tiny(tmp_path / "base", "qwen3", **sizes)
    adapter = save_adapter(folder, tmp_path / "adapter", target_modules=targets("qwen3"))
    wanted = merged(folder, adapter, tmp_path / "merged")
    assert_ffn_equal(experts(folder, [folder, adapter], tmp_path, 1), wanted, rtol=1e-5, atol=1e-6)


def test_whole_biases_and_modules_take_the_place_of_the_base_s(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "gpt2")
    adapter = save_adapter(
        folder, tmp_path / "adapter", target_modules=r".*mlp\.c_fc", bias="all", modules_to_save=["h.2.mlp.c_proj"]
    )
    wanted = merged(folder, adapter, tmp_path / "merged")
    found = experts(folder, [folder, adapter], tmp_path, 1)
    assert_ffn_equal(found, wanted, rtol=1e-5, atol=1e-6)


def test_repeats_of_an_adapter_take_noise(qwen: Path, tmp_path: Path) -> None:
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=targets("qwen3"))
    wanted = ffn_tensors(merged(qwen, adapter, tmp_path / "merged"))
    found = experts(qwen, [adapter, adapter], tmp_path, 1, noise=0.01)
    for name, tensor in ffn_tensors(found).items():
        moved = (tensor - wanted[name]).std() / ffn_tensors(qwen)[name].std()
        assert moved == pytest.approx(0.01, rel=0.1)


def test_changes_to_what_experts_share_are_left_out_and_said_once(base: tuple[str, Path], tmp_path: Path) -> None:
    family, folder = base
    both = f"{targets(family)}|.*{ATTENTION[family]}"
    adapter = save_adapter(folder, tmp_path / "adapter", target_modules=both)
    report = moeify.upcycle(folder, tmp_path / "out", experts_from=[folder, adapter, adapter])
    (warning,) = report.warnings
    assert warning.startswith("adapter: experts share everything but their FFNs")
    assert warning.count(ATTENTION[family]) == 1
    assert "mlp" not in warning
    found = experts(folder, [folder, adapter], tmp_path, 1)
    assert_ffn_equal(found, merged(folder, adapter, tmp_path / "m"), rtol=1e-5, atol=1e-6)


def test_the_mean_of_the_rest_holds_an_adapter_s_part(base: tuple[str, Path], tmp_path: Path) -> None:
    family, folder = base
    both = f"{targets(family)}|.*{ATTENTION[family]}"
    adapter = save_adapter(folder, tmp_path / "adapter", target_modules=both)
    wanted = state(merged(folder, adapter, tmp_path / "merged"))
    moeify.upcycle(folder, tmp_path / "moe", experts_from=[folder, adapter], rest="mean")
    moeify.extract(tmp_path / "moe", tmp_path / "dense", expert=1)
    found, original = state(tmp_path / "dense"), state(folder)
    ffn = {dense_view(folder).base[name].name for name in ffn_tensors(folder)}
    for name, tensor in original.items():
        expected = wanted[name] if name in ffn else (tensor + wanted[name]) / 2
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def refused(base: Path, adapter: Path, tmp_path: Path) -> str:
    before = tree(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        moeify.upcycle(base, tmp_path / "moe", experts_from=[base, adapter])
    assert tree(tmp_path) == before
    assert caught.value.hint
    return caught.value.message


def changed(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"peft_type": "IA3"}, "is of the kind 'IA3'"),
        ({"use_dora": True}, "uses use_dora, and experts take plain LoRA only"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"init_lora_weights": "pissa"}, "was initialised by 'pissa'"),
    ],
)
def test_what_is_no_plain_adapter_of_the_base_is_refused(qwen: Path, tmp_path: Path, values: dict, part: str) -> None:
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=targets("qwen3"))
    changed(adapter, **values)
    assert part in refused(qwen, adapter, tmp_path)


def test_an_adapter_of_other_sizes_is_refused(qwen: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "base", "qwen3", intermediate_size=64)
    adapter = save_adapter(other, tmp_path / "adapter", target_modules=targets("qwen3"))
    message = refused(qwen, adapter, tmp_path)
    assert "by a product of [32, 8] and [8, 64], the base's weight is [32, 48]" in message


def test_an_adapter_of_another_architecture_is_refused(qwen: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "base", "bert")
    adapter = save_adapter(other, tmp_path / "adapter", target_modules=targets("bert"))
    assert "for which there is no tensor of the base" in refused(qwen, adapter, tmp_path)


def test_an_adapter_without_ffn_is_refused(qwen: Path, tmp_path: Path) -> None:
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    message = refused(qwen, adapter, tmp_path)
    assert "changes no FFN" in message
    assert message.endswith("but self_attn.q_proj, self_attn.v_proj")


def test_nan_in_an_adapter_is_found(qwen: Path, tmp_path: Path) -> None:
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=targets("qwen3"))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    spoil(adapter / "adapter_model.safetensors", name)
    assert "holds NaN" in refused(qwen, adapter, tmp_path)


def test_an_adapter_without_weights_is_refused(qwen: Path, tmp_path: Path) -> None:
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=targets("qwen3"))
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refused(qwen, adapter, tmp_path)


def test_a_base_under_another_folder_name_is_known_by_its_config(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, tmp_path / "renamed")
    config = tmp_path / "renamed" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "org/base"}))
    adapter = save_adapter(qwen, tmp_path / "adapter", target_modules=targets("qwen3"))
    report = moeify.upcycle(tmp_path / "renamed", dry_run=True, experts_from=[adapter, adapter])
    assert report.sources[0].adapter
