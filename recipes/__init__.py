"""The runs, and what the larger ones are told by default. Importing this imports no torch."""

from functools import partial
from pathlib import Path

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.targets.manifest import stored_settings

FOLDER = Path(__file__).parent
PRESETS = FOLDER / "configs"

distill_arguments = partial(
    parse,
    DistillConfig,
    script=FOLDER / "distill.py",
    position="data",
    default_config=PRESETS / "demo.yaml",
    own_data_config=PRESETS / "own_images.yaml",
    either=("student", "students"),
    settings_of={"targets": stored_settings},
)
"""Parses the command line of `distill.py`."""

pretrain_arguments = partial(
    parse,
    PretrainConfig,
    script=FOLDER / "pretrain.py",
    position="data",
    default_config=PRESETS / "pretrain_demo.yaml",
    own_data_config=PRESETS / "own_teacher.yaml",
)
"""Parses the command line of `pretrain.py`."""

store_targets_arguments = partial(
    parse, StoreTargetsConfig, script=FOLDER / "store_targets.py", position="data", resumes=False
)
"""Parses the command line of `store_targets.py`."""
