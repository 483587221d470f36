"""Tiny models run fastest on one thread; transformers' bars would hide what a test says."""

import torch
import transformers

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
