"""How dense types become mixtures: a module for each dense type, found by name."""
