"""One thread: small products run fastest so, and sums then agree with those of a subprocess."""

import torch

torch.set_num_threads(1)
