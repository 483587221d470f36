"""Tiny models run fastest on one thread, above all where other work shares the machine."""

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
