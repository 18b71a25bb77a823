"""Provide the shipped recipes of VCR with tiny sizes."""

from configs import vcr as recipes
from tests.helpers.tiny_recipes import shrink


def shrunk(variant: str, data_dir, **fields):
    """Return the shipped recipe on the synthetic corpus; only its sizes are changed."""
    config, demo = getattr(recipes, variant)(), recipes.demo()
    names = ("texts", "images", "vocab", "text_length", "max_regions", "sequence_length")
    shrink(config, demo, data_dir, num_layers=1, names=names)
    if config.model.num_object_classes:
        config.model.num_object_classes = demo.model.num_object_classes
    config.data.sequence_length += config.data.arrangement == "apart"  # it has one [SEP] more
    config.data.embedded, config.report = "", False
    config.batch_size, config.grad_accumulation_steps, config.init.scratch = 4, 1, True
    config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps = 1, 0, 0
    config.update_from_flattened_dict(fields)
    return config
