"""CamemBERT to moeify's own class."""

from moeify.families.dense.camembert import LAYOUT as DENSE
from moeify.families.mixtures.camembert_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE, pooled=True),)
