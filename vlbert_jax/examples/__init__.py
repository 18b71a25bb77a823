"""The example scenes of the top-level folder `examples` under the name that it has in an installed package."""

import pathlib

# Only a checkout has this file. A wheel has the scenes themselves in its place (`package_dir` in setup.cfg).
__path__ = [str(pathlib.Path(__file__).parents[2] / "examples")]
