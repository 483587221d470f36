"""DistilBERT to moeify's own class."""

from moeify.families.dense.distilbert import LAYOUT as DENSE
from moeify.families.mixtures.distilbert_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
