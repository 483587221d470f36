"""Does a mixture compute what its dense model computes? Run both and compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.foreign_code import code_note
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.regular import read_text
from moeify.checkpoint.source import resolve_source
from moeify.errors import CheckpointError, ConfigError, DatasetError
from moeify.families.dense_checkpoint import sort_dense
from moeify.families.keys import layout_key
from moeify.families.registry import is_encoder_type, known_dense, known_layout, vocabulary_size
from moeify.families.values import Config, text_config
from moeify.routing.data import check_vocabulary
from moeify.routing.loading import encode, load_model, load_tokenizer
from moeify.routing.passes import Passes, WholeModel, passes_over, walking
from moeify.upcycling.config import VerifyConfig

if TYPE_CHECKING:
    import torch

_BYTES_A_TOKEN = 128
_NO_TOKEN = -1


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """How far two models' outputs lie apart.

    ``compared`` names the outputs: logits of a head, or hidden states of a headless model.
    ``relative_diff`` is max abs diff / max abs dense output. ``top1_agreement`` is the fraction
    of positions whose largest entry is the same, ``kl`` the mean KL(dense || moe) in nats over
    the softmax of each position; both are over hidden units where there is no head. ``warnings``
    say where transformers loads something else than a reader of the files would expect.
    """

    dense: str
    moe: str
    compared: tuple[str, ...]
    tokens: int
    dtype: str
    max_abs_diff: float
    relative_diff: float
    top1_agreement: float
    kl: float
    bit_exact: bool
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify verify --json``."""
        return {"schema": "moeify.verify/1", **asdict(self)}


def verify(dense: str | Path, moe: str | Path, config: VerifyConfig | None = None, **options: Any) -> VerifyReport:
    """Run ``dense`` and ``moe`` on the same tokens and compare their outputs.

    The tokens [B, S] come from ``text``, or are drawn evenly from the vocabulary. Models are
    loaded one after the other, in the dtype of the dense one. No code inside a checkpoint is run.
    Raises ``MoeifyError``.
    """
    config = replace(config or VerifyConfig(), **options)
    folders = [resolve_source(source).folder for source in (dense, moe)]
    # Opening names what is wrong with a file before transformers stumbles.
    opened = [Checkpoint.open(folder) for folder in folders]
    sizes = [_sizes(checkpoint.config) for checkpoint in opened]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the two models have different sizes: {sizes[0]} and {sizes[1]}",
            "compare a mixture with the dense checkpoint that it was made from",
        )
    import torch

    tokens = _tokens(folders[0], opened[0].config, config)
    with torch.no_grad():
        expected, dtype = _outputs(opened[0], tokens, config.dtype, config.low_memory)
        actual, _ = _outputs(opened[1], tokens, dtype, config.low_memory)
    report = _compare(str(dense), str(moe), expected, actual, int(tokens.numel()), dtype)
    of_moe = (f"{moe}: {note}" for note in (*opened[1].notes, *code_note(folders[1])))
    return replace(report, warnings=(*_warnings(opened[0], tokens), *of_moe))


def _sizes(config: Config) -> dict[str, Any]:
    """Vocabulary and hidden size, whatever the model type calls them."""
    layout = known_dense(config)
    config = text_config(config if layout is None else layout.canonical(config))
    return {k: config[k] for k in ("vocab_size", "hidden_size", "n_embd") if config.get(k)}


def _warnings(dense: Checkpoint, tokens: torch.Tensor) -> Iterator[str]:
    yield from (*dense.notes, *code_note(dense.folder))
    if (layout := known_dense(dense.config)) is not None:
        yield from sort_dense(dense, layout).notes
    if len(tokens) > 1 and _needs_padding(dense.config):
        yield (
            "config.json names no pad_token_id, without which this class takes one sequence at a"
            " time: here none is padded, and the last token of each is read"
        )


def _needs_padding(config: Config) -> bool:
    """Whether the class looks for the last token that is no padding."""
    decoder = not is_encoder_type(config)
    named = (config.get("architectures") or [""])[0]
    classifies = named.endswith("ForSequenceClassification")
    return decoder and classifies and config.get("pad_token_id") is None


def _tokens(folder: Path, config: Config, options: VerifyConfig) -> torch.Tensor:
    import torch

    limit = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(limit, int) and options.seq_len > limit:
        raise ConfigError(
            f"seq-len {options.seq_len} is more than the model's {limit} positions", f"pass --seq-len {limit}"
        )
    wanted = (options.batch, options.seq_len)
    if options.text is None:
        generator = torch.Generator().manual_seed(options.seed)
        return torch.randint(vocabulary_size(config), wanted, generator=generator)
    try:
        text = read_text(options.text, _BYTES_A_TOKEN * options.batch * options.seq_len)
    except CheckpointError as error:
        raise DatasetError(f"cannot read {options.text}: {error.message}", "name a text file with --text") from error
    tokenizer = load_tokenizer(folder)
    ids = encode(tokenizer, text)
    if len(ids) < options.batch * options.seq_len:
        raise DatasetError(
            f"{options.text} has {len(ids)} tokens, {options.batch} x {options.seq_len} are needed",
            "name a longer text, or pass a smaller --batch or --seq-len",
        )
    ids = ids[: options.batch * options.seq_len]
    check_vocabulary(tokenizer, max(ids), vocabulary_size(config))
    return torch.tensor(ids).view(wanted)


def _outputs(
    checkpoint: Checkpoint, tokens: torch.Tensor, dtype: str, low_memory: bool | None
) -> tuple[dict[str, torch.Tensor], str]:
    """What a model gives for ``tokens`` [B, S], and the dtype that it computes in."""
    import torch

    with _passes(checkpoint, dtype, low_memory) as passes:
        passes.check_room(tokens.numel())
        with walking(f"running {checkpoint.folder.name}", passes, len(tokens)) as running:
            for place in range(len(passes)):
                with passes.opened(place) as step:
                    output = step.run(0, _inputs(step.model, tokens))
                    computed = str(step.model.dtype).removeprefix("torch.")
                running.advance(len(tokens))
    tensors = {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and ("logits" in name or name == "last_hidden_state")
    }
    return tensors, computed


def _passes(checkpoint: Checkpoint, dtype: str, low_memory: bool | None) -> AbstractContextManager[Passes]:
    layout = known_layout(checkpoint.config)
    if layout is not None:
        return passes_over(checkpoint, layout, low_memory=low_memory, head=True, dtype=dtype, prepare=_prepare)
    if low_memory:
        raise ConfigError(
            f"moeify does not know the layers of {layout_key(checkpoint.config)!r}", "leave --low-memory out"
        )
    model = load_model(checkpoint.folder, dtype)
    _prepare(model)
    return nullcontext(WholeModel(model, head=True))


def _prepare(model: Any) -> None:
    if _needs_padding(model.config.to_dict()):
        model.config.pad_token_id = _NO_TOKEN


def _inputs(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    inputs = {"input_ids": tokens}
    if "MultipleChoice" in type(model).__name__ or "DoubleHeads" in type(model).__name__:
        inputs = {"input_ids": tokens.unsqueeze(1)}
    if is_encoder_type(model.config.to_dict()):
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def _compare(
    dense: str, moe: str, expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor], tokens: int, dtype: str
) -> VerifyReport:
    import torch

    names = tuple(name for name in expected if name in actual)
    if not names:
        raise ConfigError(f"{dense} and {moe} have no output in common", "compare models with the same head")
    pairs = [(expected[name].float(), actual[name].float()) for name in names]
    diff = max(float((a - b).abs().max()) for a, b in pairs)
    scale = max(float(a.abs().max()) for a, _ in pairs)
    agree = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten().float() for a, b in pairs])
    kl = torch.cat([_kl(a, b).flatten() for a, b in pairs])
    return VerifyReport(
        dense=dense,
        moe=moe,
        compared=names,
        tokens=tokens,
        dtype=dtype,
        max_abs_diff=diff,
        relative_diff=diff / scale if scale else diff,
        top1_agreement=float(agree.mean()),
        kl=float(kl.mean()),
        bit_exact=all(torch.equal(expected[name], actual[name]) for name in names),
    )


def _kl(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """KL(expected || actual) over the last dimension, in float64."""
    import torch

    p, q = (torch.log_softmax(x.double(), dim=-1) for x in (expected, actual))
    return torch.clamp((p.exp() * (p - q)).sum(-1), min=0)
