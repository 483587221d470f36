"""Values that are read from config.json are those that transformers reads."""

import pytest

from moeify.errors import CheckpointError
from moeify.families.registry import DENSE_LAYOUTS, MOE_LAYOUTS, vocabulary_size
from tests.tiny import outer_type, texts_of


@pytest.mark.parametrize(
    "model_type", sorted({*DENSE_LAYOUTS, *(name for name in MOE_LAYOUTS if MOE_LAYOUTS[name].loads_as is None)})
)
def test_a_config_without_a_vocabulary_has_that_of_its_class(model_type):
    from transformers import AutoConfig

    config = AutoConfig.for_model(outer_type(model_type), **texts_of(model_type))
    said = config.to_dict()
    assert vocabulary_size(said) == config.get_text_config().vocab_size
    section = said.get("text_config", said)
    section["vocab_size"] = 7
    assert vocabulary_size(said) == 7
    del section["vocab_size"]
    assert vocabulary_size(said) == config.get_text_config().vocab_size


def test_a_vocabulary_that_is_no_number_is_refused():
    for vocab_size in (0, "many", None):
        with pytest.raises(CheckpointError, match="vocab_size"):
            vocabulary_size({"model_type": "unheard-of", "vocab_size": vocab_size})
