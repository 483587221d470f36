"""lm-evaluation-harness: its tasks, and models as it takes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moeify.checkpoint.mapping_file import read_mapping
from moeify.errors import CheckpointError, ConfigError, DatasetError, MissingExtraError
from moeify.evaluation.config import EvaluateConfig
from moeify.progress import stage
from moeify.routing.loading import quiet_transformers

_FILES = (".yaml", ".yml")


def check_harness() -> None:
    """Raise ``MissingExtraError`` where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")


def named_tasks(config: EvaluateConfig) -> tuple[Any, list[Any]]:
    """The harness's manager of tasks, and what it takes for the tasks of ``config``.

    Raises ``ConfigError`` for a name that it does not know and a file that is no task.
    """
    from lm_eval.tasks import TaskManager

    with stage("finding tasks"), quiet_harness():
        manager = TaskManager(include_path=None if config.include is None else str(config.include))
    return manager, [_task(name, manager) for name in config.tasks]


def _task(name: str, manager: Any) -> Any:
    if not name.endswith(_FILES):
        if not manager.match_tasks([name]):
            near = get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
            raise ConfigError(f"lm-evaluation-harness has no task {name!r}", hint)
        return name
    if not Path(name).is_file():
        raise ConfigError(f"--tasks {name} is no file", "name a task's YAML file, or a task of the harness")
    try:
        loaded = read_mapping(Path(name))
    except CheckpointError as error:
        hint = "tasks with functions and includes are read from a folder, which --include names, by their names"
        raise ConfigError(f"{name} is no task: {error.message}", hint) from error
    if "task" not in loaded:
        raise ConfigError(f"{name} is no task: it has no key task", "write it as lm-evaluation-harness documents it")
    return loaded


def results(model: Any, tokenizer: Any, name: str, config: EvaluateConfig, manager: Any, tasks: list[Any]) -> Any:
    """The harness's results for one model; raises ``DatasetError`` where a task's data cannot be had."""
    from lm_eval import simple_evaluate

    with quiet_harness(), stage(f"evaluating {name}", unit="questions") as answering:
        held = _counted()(answering, pretrained=model, tokenizer=tokenizer, batch_size=config.batch)
        try:
            return simple_evaluate(
                model=held,
                tasks=list(tasks),
                num_fewshot=config.num_fewshot,
                limit=config.limit,
                task_manager=manager,
                log_samples=False,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
            )
        except (OSError, ConnectionError) as error:
            said = str(error).partition("\n")[0]
            raise DatasetError(
                f"the data of a task cannot be read: {said}",
                "tasks are fetched from the Hub: go online once, or name a task file with data of your own",
            ) from error


def _counted() -> type[Any]:
    """The harness's class for transformers' models, which says how many questions are answered."""
    from lm_eval.models.huggingface import HFLM

    class Counted(HFLM):  # type: ignore[misc]
        def __init__(self, answering: Any, **options: Any) -> None:
            super().__init__(**options)
            self.answering = answering

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **options: Any) -> Any:
            self.answering.reach(0, len(requests))
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.answering.reach(0, len(requests))
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
            out = super()._model_call(inps, *args, **options)
            self.answering.advance(len(inps))
            return out

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            out = super()._model_generate(context, *args, **options)
            self.answering.advance(len(context))
            return out

    return Counted


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep the harness, and the libraries that it uses, from logging, drawing bars and asking git for a version."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.api import metrics, model, task

    with ExitStack() as undone:
        undone.enter_context(quiet_transformers())
        for module in (metrics, model, task):
            undone.enter_context(_instead(module, "tqdm", lambda iterable, *_, **__: iterable))
        undone.enter_context(_instead(evaluator, "get_git_commit_hash", lambda: None))
        for name in ("lm_eval", "evaluate"):
            logger = logging.getLogger(name)
            undone.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            undone.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
        yield


@contextmanager
def _instead(module: Any, name: str, other: Any) -> Iterator[None]:
    """``other`` in the place of what a module has, where it has it."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, before)
