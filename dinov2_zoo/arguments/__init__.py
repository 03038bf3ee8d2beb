"""From a command line to a checked configuration, and from errors to exit codes. No torch: it answers at once."""

from dinov2_zoo.arguments.command_line import Arguments, as_options, call, parse
from dinov2_zoo.arguments.exit_codes import answer_early, run
from dinov2_zoo.arguments.help_page import abstract

__all__ = ["Arguments", "abstract", "answer_early", "as_options", "call", "parse", "run"]
