"""A moeify process that something befalls at a chosen one of its operations on files.

``python -m tests.faults.child upcycle ...`` runs one command; ``--nursery`` imports what takes long
and then forks a process for every command that comes in by a line of JSON. What befalls it stands
in the variable MOMENT: at the operation of that number below a folder, a signal to itself. A file
``begun`` appears when the interpreter has started and moeify begins. ``all`` lists several moments.
With ``processes`` noise is made by processes of their own, which is else left to large checkpoints.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from typing import Any

OPERATIONS = {
    "open",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.truncate",
    "fcntl.flock",
    "shutil.copyfile",
    "shutil.rmtree",
}
WITHOUT_PATHS = {"os.truncate", "fcntl.flock"}  # these name files by descriptor


def watch(moment: dict[str, Any]) -> None:
    """Count operations on files below ``moment["below"]``, and send the signal at its number.

    With ``event`` only operations of that kind count. A path counts by any part of it.
    """
    below, number = moment["below"], moment.get("operation")
    wanted = {moment["event"]} if moment.get("event") else OPERATIONS
    counter = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in wanted:
            return
        paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))]
        if event not in WITHOUT_PATHS and not any(below in path for path in paths):
            return
        count = next(counter)
        if moment.get("count_into"):
            os.pwrite(moment["count_into"], f"{count:9}".encode(), 0)
        if count == number:
            os.kill(os.getpid(), moment["signal"])

    sys.addaudithook(hook)


def run(arguments: list[str], moment: dict[str, Any]) -> None:
    """Become ``moeify ARGUMENTS``."""
    from moeify.__main__ import main
    from moeify.cli._signals import leave_at_once

    leave_at_once()
    if moment.get("processes"):
        import moeify.checkpoint.writer

        moeify.checkpoint.writer._WORTH_A_PROCESS = 1
    if moment.get("count_to"):
        moment["count_into"] = os.open(moment["count_to"], os.O_WRONLY | os.O_CREAT, 0o600)
    for one in moment.get("all", [moment]):
        if one.get("below"):
            watch(one)
    if moment.get("begun"):
        os.close(os.open(moment["begun"], os.O_WRONLY | os.O_CREAT, 0o600))
    sys.argv = ["moeify", *arguments]
    main()


def nursery() -> None:
    """Fork a moeify for every line of JSON, and say its process id and how it ended."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import torch
    import transformers.trainer  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.qwen2_moe import modeling_qwen2_moe  # noqa: F401
    from transformers.models.qwen3_moe import modeling_qwen3_moe  # noqa: F401

    import moeify.pruning.prune
    import moeify.warming.train
    import moeify.warming.warmup  # noqa: F401
    from moeify.modeling.modeling_moe import BertMoeModel, GPT2MoeModel  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, Any]) -> None:
    for number, path in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o600), number)
    os.chdir(order["cwd"])
    os.environ.update(order["environment"])
    code = 70
    try:
        run(order["arguments"], order["moment"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--nursery":
        nursery()
    else:
        run(sys.argv[1:], json.loads(os.environ.get("MOMENT", "{}")))
