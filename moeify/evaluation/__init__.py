"""Checkpoints side by side on the tasks of lm-evaluation-harness."""
