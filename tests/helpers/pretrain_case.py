"""Provide the shipped recipes of pre-training with tiny sizes."""

from configs import pretrain as recipes
from tests.helpers.tiny_recipes import shrink

FEATURES = 12  # size of a precomputed feature


def shrunk(variant: str, data_dir, **fields):
    """Return the shipped recipe on the synthetic corpus; only its sizes are changed."""
    config, demo = recipes.get_config(variant), recipes.demo()
    names = ("captions", "text", "vocab", "class_names", "visual_words", "group_words")
    shrink(config, demo, data_dir, num_layers=2, names=names)
    config.model.feature_size, config.model.num_region_classes = FEATURES, 81
    config.data.update(dict(max_regions=6, sequence_length=24, text_min_words=22, max_mlm_targets=12))
    config.data.max_mrc_targets = 4
    config.batch_size, config.init.scratch = 16, True
    config.update_from_flattened_dict(fields)
    return config
