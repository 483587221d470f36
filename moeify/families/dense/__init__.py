"""Dense model types: a module each, with its ``LAYOUT``, found by name."""
