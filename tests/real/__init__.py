"""Tests on real trained checkpoints, real text and files shaped like those on the Hub."""
