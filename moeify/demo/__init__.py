"""A small GPT-2 trained by `scripts/train_demo.py`, and text it has never seen."""
