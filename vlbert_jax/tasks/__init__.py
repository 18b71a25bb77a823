"""A task is a module: how to lay out a sequence, a head, a loss, a score. `train.py` knows no task by name.

Each module in `TASKS` has these functions, `config` being the run's ConfigDict:

build_model(config, rngs)             the nnx.Module that is trained
is_frozen(path, config)               whether the parameter at that path (tuple of names) is a constant
is_idle(path, config, names)          whether updates with these losses leave the parameter at that path as it is
train_batches(config, start_step, process_index, process_count)
                                      infinite iterator of this host's part of global batch start_step, +1, ...
                                      (`Batch` of numpy arrays)
eval_batches(config, process_index, process_count)
                                      dict: subset -> iterator over this host's part of the split, exactly once
                                      (the last batch is padded with empty examples)
batch_shapes(config)                  the global batch of an update as shapes alone: what is compiled before there is
                                      data
active_losses(config, step)           names of the losses that count at this step (static under jit)
loss_weights(config)                  dict: loss -> weight
loss_counts(batch, config, names)     dict: loss -> what its sum is divided by; needs no model
loss_sums(model, batch, key, config, names)
                                      dict: loss -> sum, and dict: metric -> (sum, count);
                                      `key` draws dropout, None = no dropout
score(model, batch, config)           dict: metric -> (sum, count) of an evaluation batch, no dropout
write_report(directory, model, config, history)
                                      the run's page for people; `history` = rows of metrics.jsonl

and, if it has to do with them:

prepare(model, config, filled)        changes a new model in place; `filled` = paths of the parameters that were loaded
predict(model, batch, config)         dict: name -> array [b, ...], what is predicted for each example
conclude(directory, predictions, config)
                                      writes prediction files and returns scores that need all examples at once;
                                      `predictions` = "" or a companion's name -> rows in order of their index
companions(config)                    dict: name -> config of another run whose predictions `conclude` needs, too

Losses are sums and counts over the *global* batch, so that 1 or 256 devices, cut into parts or not, agree.
"""

from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.tasks.refcoco import task as refcoco
from vlbert_jax.tasks.vcr import task as vcr
from vlbert_jax.tasks.vqa import task as vqa

TASKS = {"pretrain": pretrain, "vqa": vqa, "vcr": vcr, "refcoco": refcoco}
