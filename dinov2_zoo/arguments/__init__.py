"""From a command line to a checked configuration, and from errors to exit codes. No torch: it answers at once."""

import os

from dinov2_zoo.arguments.command_line import Arguments, as_options, call, parse
from dinov2_zoo.arguments.exit_codes import answer_early, run
from dinov2_zoo.arguments.help_page import abstract

# torch's threads spin while they wait for one another unless told otherwise before torch is loaded: beside processes
# that decode on the same cores, that tripled an evaluation's CPU time (2 cores). What the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Arguments", "abstract", "answer_early", "as_options", "call", "parse", "run"]
