"""Dense checkpoints into mixtures of experts."""
