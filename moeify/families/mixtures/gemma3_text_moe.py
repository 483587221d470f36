"""The text model of Gemma 3 as a mixture in moeify's own class."""

from moeify.families.dense.gemma3_text import LAYOUT as DENSE
from moeify.families.own import own_mixture

LAYOUT = own_mixture(DENSE)
