"""Gemma 2 as a mixture in moeify's own class."""

from moeify.families.dense.gemma2 import LAYOUT as DENSE
from moeify.families.own import own_mixture

LAYOUT = own_mixture(DENSE)
