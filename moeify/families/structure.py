"""Whether a checkpoint holds what its class will load, told from names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, MoeifyError
from moeify.families.base import DenseLayout
from moeify.families.conversion import Conversion
from moeify.families.dense_checkpoint import sort_dense
from moeify.families.dense_checks import dense_problems
from moeify.families.joining import joined_shapes
from moeify.families.mixture import Mixture, sort_mixture
from moeify.families.moe_checks import check_mixture
from moeify.families.problems import Problem, by_pattern
from moeify.families.registry import is_mixture, known_dense, moe_layout, possible_origins
from moeify.families.values import Config, resolve_shape

Tensors = Mapping[str, StoredTensor]
_HARMLESS = "unknown_tensor"  # loading passes over what no class knows


def check_structure(tensors: Tensors, config: Config, what: str) -> None:
    """Raise ``CheckpointError`` where the class of ``config`` would lack a tensor of ``what``.

    Of a model type that moeify has no layout for nothing is known, and nothing is said.
    """
    problems = [p for p in structure_problems(tensors, config) if p.kind != _HARMLESS]
    if problems:
        more = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{what} would not load: {problems[0].message}{more}",
            "moeify inspect SOURCE shows what the source lacks; if it lacks nothing, report a bug",
        )


def structure_problems(tensors: Tensors, config: Config) -> list[Problem]:
    """Tensors that are missing, surplus or of another shape than config.json says."""
    held = Checkpoint(folder=Path(), config=config, tensors=dict(tensors), shards=())
    if (dense := known_dense(config)) is not None:
        return dense_problems(sort_dense(held, dense))
    if not is_mixture(config):
        return []
    return list(mixture_problems(sort_mixture(held, moe_layout(config, tensors))))


def mixture_problems(mixture: Mixture) -> Iterator[Problem]:
    """What ``check_mixture`` finds and, where a dense half knows every shape, the rest's shapes."""
    yield from check_mixture(mixture)
    held = [_against(mixture, conversion) for conversion in possible_origins(mixture.config)]
    yield from min((found for found in held if found is not None), key=len, default=[])


def _against(mixture: Mixture, conversion: Conversion) -> list[Problem] | None:
    """The rest held against a dense half that it may have; None where it is not that one."""
    try:
        config = conversion.dense_config(mixture.config)
        return list(_rest_problems(mixture, conversion.dense, config))
    except (MoeifyError, TypeError, ValueError, AttributeError):
        return None  # a mixture that no dense model corresponds to, such as one with a class of its own


def _rest_problems(mixture: Mixture, dense: DenseLayout, config: Config) -> Iterator[Problem]:
    """Norms, attention, embeddings and heads held against the dense class of ``config``.

    Its FFNs are left out: in the mixture those of dense layers may have another width.
    """
    tensors = {dense.modern_name(name): stored for name, stored in mixture.checkpoint.tensors.items()}
    head = dense.head(config)
    ffn = {dense.layer.format(layer=layer) + part.name for layer in range(mixture.num_layers) for part in dense.ffn}
    rest = {mixture.prefix + name: shape for name, shape in dense.base_tensors(config).items() if name not in ffn}
    wanted = joined_shapes(rest, mixture.layout.joined)
    heads = {n: resolve_shape(shape, dense.dims(config)) for n, shape in head.tensors.items()}
    tied = dense.tied(head, config)
    # check_mixture speaks of a causal model's own.
    causal = str(config["architectures"][0]).endswith("ForCausalLM")
    spoken = ("lm_head.weight",) if causal else ()
    absent = [name for name in heads if name not in tensors and name not in spoken and name not in tied]
    # Where one layer has it and others lack it, the layers' own comparison says so with numbers.
    everywhere = {name for names in mixture.layers.values() for name in names}
    optional = tuple(f".{name}" for name in dense.optional)
    root = mixture.prefix + dense.layer.split("{")[0]
    for name in wanted:
        inner = name.removeprefix(root).partition(".")[2]
        if name in tensors or name.endswith(optional):
            continue
        spoken_of = inner in everywhere and inner not in dense.varying
        if not spoken_of if name.startswith(root) else name.removeprefix(mixture.prefix) in dense.only_if:
            absent.append(name)
    yield from by_pattern("missing_tensor", absent, "missing")
    wrong = [name for name, shape in (wanted | heads).items() if name in tensors and tensors[name].shape != shape]
    yield from by_pattern("shape", wrong, "of another shape than config.json says")
