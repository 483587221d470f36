"""Mixtures of experts: a module for each model type, with its ``LAYOUT``, found by name."""
