"""LLaVA around a Mixtral."""

from moeify.families.dense.llava__llama import LAYOUT as DENSE
from moeify.families.mixtures.mixtral import LAYOUT as TEXT
from moeify.families.wrappers import WRAPPERS

LAYOUT = WRAPPERS["llava"].mixture(TEXT, DENSE)
