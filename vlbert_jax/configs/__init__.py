"""The recipes of the top-level folder `configs` under the name that they have in an installed package."""

import pathlib

# Only a checkout has this file. A wheel has the recipes themselves in its place (`package_dir` in setup.cfg).
__path__ = [str(pathlib.Path(__file__).parents[2] / "configs")]
