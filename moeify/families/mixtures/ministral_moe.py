"""Ministral as a mixture in moeify's own class."""

from moeify.families.dense.ministral import LAYOUT as DENSE
from moeify.families.own import own_mixture

LAYOUT = own_mixture(DENSE)
