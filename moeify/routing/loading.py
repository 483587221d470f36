"""Loading a checkpoint into the class its config names, without running code from its folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moeify.checkpoint.foreign_code import without_code
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.reader import CONFIG_FILE, TOKENIZER_FILES, Checkpoint, has_tokenizer
from moeify.errors import CheckpointError, DatasetError, MissingExtraError
from moeify.families.quantization import QUANTIZATION, all_plain
from moeify.families.registry import default_class, known_dense, known_mixture, moe_layout
from moeify.modeling import MODELING, REMOTE_CODE
from moeify.progress import stage
from moeify.routing.extent import within_files
from moeify.routing.running import first_line

_READ_BY_TOKENIZERS = (
    *TOKENIZER_FILES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "bpe.codes",
    "chat_template.jinja",
)
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_MAX_TOKENIZER_BYTES = 200_000_000
_MAX_TOKEN = (1 << 31) - 1  # blocks hold 32 bits
_WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "moe_latent_size")
_TOP_K = "num_experts_per_tok"
_QUANTISED = "install what reads this quantisation, or use the unquantised checkpoint"
_ALIGNED = 8  # elements of two bytes in 16 bytes


def load_model(folder: Path, dtype: str = "auto", device_map: Mapping[str, Any] | None = None) -> Any:
    """The model in ``folder``, in evaluation mode, as the class that config.json names.

    Classes come from transformers and from moeify, never from the folder. ``device_map`` names
    modules and their devices: nothing is read for those on the meta device, and nothing moves
    between devices later; call ``outline`` before. Raises ``CheckpointError`` when transformers
    cannot load it, or config.json describes a model that the files cannot hold.
    """
    settle = None if device_map is None else require_accelerate()
    placing = {} if device_map is None else {"device_map": dict(device_map)}
    checkpoint = Checkpoint.open(folder)
    _check_loadable(checkpoint)
    if device_map is None:
        _outline(checkpoint)  # costs milliseconds, and what does not fit takes no memory
    if checkpoint.wrappers:
        raise CheckpointError(
            f"transformers does not know {' and '.join(checkpoint.wrappers)} before the names of"
            f" tensors, and would load {folder} with random weights",
            "save the model inside of the wrapper: model.module.save_pretrained, or _orig_mod for module",
            path=folder,
        )
    names = [path.relative_to(folder).as_posix() for path in checkpoint.shards]
    settings = [CONFIG_FILE, *filter(None, [checkpoint.index_file])]
    hint = _QUANTISED if checkpoint.config.get(QUANTIZATION) else None
    # Single layers are loaded one after the other, in a stage that counts them.
    loading = stage("loading the model") if device_map is None else nullcontext()
    with loading, _bare(folder, names, settings) as place, _quiet_loading(folder, place, hint):
        config = _config(place, checkpoint)
        model = model_class(config).from_pretrained(
            place, config=config, dtype=dtype, use_safetensors=True, **_experts(config), **placing
        )
    if settle is not None:
        settle(model)
    return model.eval()


def require_accelerate() -> Callable[[Any], Any]:
    """What takes accelerate's hooks, which move inputs from device to device, off a model.

    Raises ``MissingExtraError`` where accelerate, which loads single layers, is not installed.
    """
    try:
        from accelerate.hooks import remove_hook_from_submodules
    except ModuleNotFoundError as error:
        raise MissingExtraError("accelerate", "train") from error
    return remove_hook_from_submodules  # type: ignore[no-any-return]


def outline(folder: Path) -> Any:
    """The modules of the model in ``folder``, without weights; raises as ``load_model`` does."""
    return _outline(Checkpoint.open(folder))


def _outline(checkpoint: Checkpoint) -> Any:
    import torch

    folder = checkpoint.folder
    _check_loadable(checkpoint)
    with (
        _bare(folder, [], [CONFIG_FILE]) as place,
        _quiet_loading(folder, place),
        within_files(checkpoint),
        torch.device("meta"),
    ):
        config = _config(place, checkpoint)
        _check_top_k(config, checkpoint)
        return model_class(config)(config)


def _check_loadable(checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` where a class of transformers has the name and not the parts."""
    layout = known_mixture(checkpoint.config)
    if layout is not None and layout.unloadable and layout.moe_layers(checkpoint.config):
        raise CheckpointError(
            f"transformers cannot load {checkpoint.folder}: {layout.unloadable}",
            "inspect headers and weights, or prune without text",
            path=checkpoint.folder,
        )


def _check_top_k(config: Any, checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` for more experts a token than there are, by defaults or not."""
    values = config.to_dict()
    if known_mixture(values) is None:
        return
    layout = moe_layout(values, checkpoint.tensors)
    top_k, num_experts = layout.top_k(values), layout.num_experts(values)
    if top_k > num_experts:
        raise CheckpointError(
            f"config.json sends a token to {top_k} experts of {num_experts}",
            f"mend {' or '.join(layout.top_k_keys)} in config.json",
            path=checkpoint.folder,
        )


def _config(folder: Path, checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if (dense := known_dense(config.to_dict())) is not None:  # files may name classes of code that came with them
        config.architectures = dense.canonical(checkpoint.config).get("architectures")
    if hasattr(config, QUANTIZATION) and all_plain(checkpoint.tensors.values()):
        delattr(config, QUANTIZATION)  # left over, and would have weights unpacked that are not
    return config


def _experts(config: Any) -> dict[str, str]:
    """Widths that torch's grouped multiplication refuses need the plain one, as ours know."""
    if config.model_type in REMOTE_CODE:
        return {}
    section = config.get_text_config()
    sizes = (getattr(section, name, None) for name in _WIDTHS)
    odd = any(size % _ALIGNED for size in sizes if type(size) is int)
    return {"experts_implementation": "eager"} if odd and hasattr(section, _TOP_K) else {}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; raises ``CheckpointError`` when there is none."""
    if not has_tokenizer(folder):
        raise CheckpointError(f"{folder} has no tokenizer", "copy the tokenizer's files of its base model into it")
    names = {path.name for pattern in _READ_BY_TOKENIZERS for path in folder.glob(pattern)}
    settings = [CONFIG_FILE, _TOKENIZER_SETTINGS]
    with _bare(folder, sorted(names), settings) as place, _quiet_loading(folder, place):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)


Places = list[tuple[int, int]]
"""Where each token of a text begins and ends in it, in characters."""


def encode(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """The tokens of ``text``, those that the tokenizer puts around texts included if ``special``.

    Raises ``DatasetError`` where a damaged tokenizer cannot.
    """
    return _encoded(tokenizer, text, add_special_tokens=special)[0]


def encode_with_places(tokenizer: Any, text: str) -> tuple[list[int], Places | None]:
    """The tokens of ``text``, none around it, and their places; None where the tokenizer does not know them.

    Raises as ``encode`` does.
    """
    knows = bool(getattr(tokenizer, "is_fast", False))
    tokens, found = _encoded(tokenizer, text, add_special_tokens=False, return_offsets_mapping=knows)
    return tokens, list(found["offset_mapping"]) if knows else None


def _encoded(tokenizer: Any, text: str, **options: bool) -> tuple[list[int], Any]:
    hint = "use the tokenizer that belongs to the checkpoint"
    try:
        found = tokenizer(text, verbose=False, **options)
        tokens = list(found["input_ids"])
    except BaseException as error:
        raise DatasetError(f"the tokenizer cannot read the text: {first_line(error)}", hint) from error
    if tokens and max(tokens) > _MAX_TOKEN:
        raise DatasetError(f"the tokenizer makes token {max(tokens)}: no model has so many", hint)
    return tokens, found


def model_class(config: Any) -> Any:
    """The class that a transformers config names in ``architectures``, or the usual one."""
    import transformers

    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    usual = default_class(config.to_dict()) or causal.get(config.model_type, "")
    name = (config.architectures or [usual])[0]
    if config.model_type in REMOTE_CODE:
        home: Any = import_module(f"moeify.modeling.{MODELING}")
    else:
        home = transformers
    found = getattr(home, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"transformers has no class {name!r} for model_type {config.model_type!r}",
            "mend architectures in config.json",
        )
    return found


@contextmanager
def _bare(folder: Path, names: Iterable[str], settings: Iterable[str]) -> Iterator[Path]:
    """A folder of links to what is wanted of ``folder``, and ``settings`` that name no code.

    transformers looks for more than weights and vocabularies: adapters, whose config names another
    model to load, Python files, paths inside tokenizer_config.json. Here it finds none of that.
    """
    with TemporaryDirectory(prefix="moeify-") as temporary:
        place = Path(temporary)
        for name in names:
            target = resolve_inside(folder, name).resolve()
            if not target.is_file():
                raise CheckpointError(f"{name!r} in {folder} is not a regular file", path=target)
            if name in TOKENIZER_FILES and target.stat().st_size > _MAX_TOKENIZER_BYTES:
                raise CheckpointError(
                    f"{name} has {target.stat().st_size} bytes, more than {_MAX_TOKENIZER_BYTES}", path=target
                )
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(target)
        for name in settings:
            if (folder / name).is_file():
                document = without_code(read_json(resolve_inside(folder, name)))
                if name == CONFIG_FILE and (known := known_mixture(document)) is not None:
                    document |= {"model_type": known.loads_as} if known.loads_as else {}
                if name == _TOKENIZER_SETTINGS:
                    document = {k: v for k, v in document.items() if not k.endswith("_file")}
                (place / name).write_text(json.dumps(document), encoding="utf-8")
        yield place


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging and drawing bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # A Qwen2-MoE whose shared expert has no neurons is what upcycle writes.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _quiet_loading(folder: Path, place: Path, hint: str | None = None) -> Iterator[None]:
    """Keep transformers quiet, and turn its many exceptions into one.

    What a damaged file makes of its own and the Rust library's code has no common class.
    """
    try:
        with quiet_transformers():
            yield
    except CheckpointError:
        raise
    except BaseException as error:
        reason = first_line(error).replace(str(place), str(folder))
        raise CheckpointError(f"transformers cannot load {folder}: {reason}", hint) from error
