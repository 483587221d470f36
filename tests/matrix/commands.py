"""What each command must do to a source: the columns of the matrix, each run and checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.families.keys import layout_key
from moeify.families.registry import known_mixture, moe_layout, origin
from moeify.hub.listing import local_files
from moeify.hub.plan import plan_push
from moeify.routing.loading import model_class
from tests.matrix.packing import METHODS
from tests.matrix.refusals import UNLOADABLE
from tests.matrix.sources import EXPERTS, TEXT, Source, digest, hashes
from tests.pruning.masking import masked_logits
from tests.tiny import tolerance

KEEP, SEQ_LEN, MOST = 6, 16, 256
_BATCH = MOST // SEQ_LEN
_TEXT: dict[str, Any] = {"dataset": str(TEXT), "seq_len": SEQ_LEN}
_CALIBRATED = ("frequency", "gate", "ean", "reap")
_COMPUTED = ("reap", "aimer")  # whose output is run: what the others write is held by its bytes


@dataclass(frozen=True, kw_only=True)
class Command:
    """A column: ``run`` works in an empty folder and raises where a promise is not kept."""

    name: str
    run: Callable[[Source, Path], None]
    checks: str


def upcycle(source: Source, work: Path) -> None:
    moeify.upcycle(source.folder, work / "moe", num_experts=4, top_k=2, noise=0)
    _loads_whole(work / "moe")
    report = moeify.verify(source.folder, work / "moe", text=TEXT, batch=2, seq_len=SEQ_LEN)
    assert report.relative_diff <= tolerance(source.model_type, source.form.dtype)
    moeify.upcycle(source.folder, work / "flat", num_experts=4, router="zeros", noise=0)
    assert moeify.verify(source.folder, work / "flat").bit_exact or source.form.dtype == "float32"
    moeify.extract(work / "moe", work / "back", expert=3)
    assert hashes(work / "back") == source.hashes


def attach(source: Source, work: Path) -> None:
    top_k = 2 if source.form.name == "null experts" else source.slices
    report = moeify.attach(source.folder, work / "out", top_k=top_k)
    changed = _changed(source, work / "out")
    assert set(report.after) == set(_layers(source))
    assert changed and not any(".experts." in name for name in changed)
    if source.form.name not in UNLOADABLE:
        _loads_whole(work / "out")
    config = Checkpoint.open(work / "out").config
    assert moe_layout(config).top_k(config) == top_k


def warmup(source: Source, work: Path, train: str = "routers") -> None:
    report = moeify.warmup(
        source.folder,
        work / "out",
        steps=2,
        batch=4,
        fit_tokens=64,
        eval_tokens=64,
        device="cpu",
        train=train,
        **_TEXT,
    )
    assert report.steps == 2
    changed = _changed(source, work / "out")
    known = _router_names(source)
    routers = [name for name in changed if name.endswith(known)]
    assert routers and (len(changed) > len(routers)) is (train == "moe")
    _loads_whole(work / "out")


def _router_names(source: Source) -> tuple[str, ...]:
    layout = moe_layout(source.config, Checkpoint.open(source.folder).tensors)
    names = (layout.router, layout.router_bias, layout.rule.selection_bias, layout.null_router)
    return tuple(f".{name}" for name in names if name is not None)


def inspect_headers(source: Source, work: Path) -> None:
    report = moeify.inspect(source.folder)
    assert report.problems == []
    assert report.kind == ("dense" if source.is_dense else "moe")
    if source.form.name not in METHODS:
        assert report.params_total == sum(p.numel() for p in source.model.parameters())


def inspect_weights(source: Source, work: Path) -> None:
    report = moeify.inspect(source.folder, weights=True)
    for layer in report.layers:
        assert layer.to_dict().keys() > {"layer", "num_experts", "expert_parameters"}


def inspect_dataset(source: Source, work: Path) -> None:
    report = moeify.inspect(source.folder, max_tokens=MOST, batch=_BATCH, **_TEXT)
    assert report.routing is not None and 0 < report.routing["tokens"] <= MOST
    for layer in report.layers:
        sums = report.sums[layer.layer]
        visited = sums.experts_per_token
        assert sums.tokens_per_expert.sum() == pytest.approx(report.routing["tokens"] * visited)
        assert 1 < visited < 2 if source.form.name == "null experts" else visited == report.top_k


def _scored(source: Source) -> dict[str, Any]:
    """Text to score experts on, which is read once for a source: one pass gives every criterion's sums."""
    return {"max_tokens": MOST, "batch": _BATCH, "scores": source.scores, **_TEXT}


def prune_by(criterion: str) -> Callable[[Source, Path], None]:
    def run(source: Source, work: Path) -> None:
        text = _scored(source) if criterion in _CALIBRATED else {}
        _pruned(source, work / "out", logits=criterion in _COMPUTED, by=criterion, protect=False, **text)

    return run


def prune_eval(source: Source, work: Path) -> None:
    report = moeify.prune(source.folder, work / "out", keep=KEEP, evaluate=True, random_seeds=1, **_scored(source))
    assert report.held_out is not None and 0 < report.held_out.before < 30
    _loads_whole(work / "out")


def prune_merge(source: Source, work: Path) -> None:
    moeify.prune(source.folder, work / "out", keep=KEEP, merge=True, by="aimer")
    _loads_whole(work / "out")


def prune_low_memory(source: Source, work: Path) -> None:
    options = {"keep": KEEP, **_scored(source)}
    small = moeify.prune(source.folder, work / "small", low_memory=True, **options | {"scores": None})
    whole = moeify.prune(source.folder, work / "whole", **options)
    assert small.layer_by_layer and small.kept == whole.kept
    for layer, scores in whole.scores.items():
        assert small.scores[layer] == pytest.approx(scores, rel=1e-3, abs=1e-5)


def extract(source: Source, work: Path) -> None:
    moeify.extract(source.folder, work / "out", expert=EXPERT)
    _loads_whole(work / "out")
    assert layout_key(Checkpoint.open(work / "out").config) == origin(source.config).dense.model_type


def prune_dense(source: Source, work: Path) -> None:
    report = moeify.prune(source.folder, work / "out", keep=1, dense=True, by="random")
    _loads_whole(work / "out")
    if source.config.get("shared_slices"):  # whose neurons stand among those of the kept experts
        _as_masked(source, work / "out", report.dropped)
    else:
        assert set(hashes(work / "out").values()) <= _with_slices(source, report.kept)


def verify(source: Source, work: Path) -> None:
    """A checkpoint computes what it computes itself, also on text of its own tokenizer."""
    report = moeify.verify(source.folder, source.folder, text=TEXT, batch=2, seq_len=SEQ_LEN)
    assert report.bit_exact and report.top1_agreement == 1


def push(source: Source, work: Path) -> None:
    """What would be sent is everything that loading and the tokenizer need."""
    local, left = local_files(Checkpoint.open(source.folder), "user/model")
    plan = plan_push("user/model", "main", local, None, left, None)
    names = {file.name for file in plan.uploads}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert names >= {path.name for path in source.folder.glob("*.safetensors")}
    assert plan.left_out == ()


COMMANDS = (
    Command(
        name="upcycle", run=upcycle, checks="mixture computes what the dense model computes; one expert gives it back"
    ),
    Command(name="attach", run=attach, checks="only routers change; loads with nothing missing"),
    Command(name="warmup", run=warmup, checks="only routers change; loads with nothing missing"),
    Command(
        name="warmup --train moe",
        run=lambda s, w: warmup(s, w, "moe"),
        checks="routers and experts change; loads with nothing missing",
    ),
    Command(name="inspect", run=inspect_headers, checks="no problem found; parameters as the loaded model has them"),
    Command(name="inspect --weights", run=inspect_weights, checks="figures for every layer"),
    Command(name="inspect --dataset", run=inspect_dataset, checks="every token counted"),
    *(
        Command(
            name=f"prune --by {by}",
            run=prune_by(by),
            checks="kept bytes unchanged" + "; logits as with the dropped experts masked" * (by in _COMPUTED),
        )
        for by in (*_CALIBRATED, "aimer", "random")
    ),
    Command(name="prune --eval", run=prune_eval, checks="held-out loss; loads"),
    Command(name="prune --merge", run=prune_merge, checks="loads with nothing missing"),
    Command(name="prune --low-memory", run=prune_low_memory, checks="scores as in one piece"),
    Command(name="prune --dense", run=prune_dense, checks="loads with nothing missing"),
    Command(name="extract", run=extract, checks="loads as the dense class"),
    Command(name="verify", run=verify, checks="equal to itself, to the bit"),
    Command(name="push", run=push, checks="everything that loading needs would be sent"),
)
EXPERT = 1


def _layers(source: Source) -> tuple[int, ...]:
    config = source.config
    return moe_layout(config, Checkpoint.open(source.folder).tensors).moe_layers(config)


def _changed(source: Source, output: Path) -> set[str]:
    after = hashes(output)
    assert after.keys() == source.hashes.keys()
    return {name for name in after if after[name] != source.hashes[name]}


def _loads_whole(folder: Path) -> Any:
    """The model in float32: transformers finds every tensor that the class has, and no other."""
    from transformers import AutoConfig

    folder = _known(folder)
    config = AutoConfig.from_pretrained(folder)
    model, info = model_class(config).from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def _known(folder: Path) -> Path:
    """A copy under the model type that transformers knows, where it does not know the checkpoint's own."""
    config = Checkpoint.open(folder).config
    layout = known_mixture(config)
    if layout is None or layout.loads_as is None:
        return folder
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-known")))
    (copy / "config.json").write_text(json.dumps(config | {"model_type": layout.loads_as}))
    return copy


def _pruned(source: Source, output: Path, logits: bool, **options: Any) -> None:
    """Cut ``source`` and hold the result's bytes, and its ``logits``, against the masked original."""
    report = moeify.prune(source.folder, output, keep=KEEP, **options)
    assert report.num_experts == KEEP
    assert set(hashes(output).values()) <= _with_slices(source, report.kept)
    if source.form.name not in UNLOADABLE and logits:
        _as_masked(source, output, report.dropped)


def _as_masked(source: Source, output: Path, dropped: dict[int, tuple[int, ...]]) -> None:
    """Hold the logits of ``output`` against those of ``source`` without the ``dropped`` experts."""
    ids = torch.randint(3, 2000, (2, 11), generator=torch.Generator().manual_seed(5))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = masked_logits(source.model, batch, dropped)
    with torch.no_grad():
        found = _loads_whole(output)(**batch).logits
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def _with_slices(source: Source, kept: dict[int, tuple[int, ...]]) -> set[str]:
    """Hashes of the source's tensors, whole and with the kept experts alone along either axis."""
    found = set(source.hashes.values())
    for path in source.folder.glob("*.safetensors"):
        for tensor in load_file(path).values():
            for axis in range(min(tensor.ndim, 2)):
                for chosen in set(kept.values()):
                    if tensor.shape[axis] == EXPERTS:
                        cut = tensor.index_select(axis, torch.tensor(chosen))
                        found |= {digest(cut), digest(cut.squeeze(axis))}
                        if len(chosen) == 1 and cut.ndim == 3:  # a gate and an up-projection
                            found |= {digest(half) for half in cut.squeeze(axis).chunk(2)}
                        if len(chosen) == source.slices and axis == 0 and cut.ndim > 1:
                            found |= {digest(whole) for whole in _joined(cut)}
    return found


def _joined(slices: torch.Tensor) -> Iterator[torch.Tensor]:
    """The neurons of a network's slices together: as rows, as columns, behind their gates, or a last bias' parts."""
    yield slices.flatten(0, 1)
    yield torch.cat(tuple(slices), dim=-1)
    yield torch.cat([half.flatten(0, 1) for half in slices.chunk(2, dim=1)])
    yield slices.sum(0)
