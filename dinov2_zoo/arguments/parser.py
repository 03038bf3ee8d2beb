"""jsonargparse's parser, with errors that name what was probably meant."""

from typing import Any, NoReturn

import jsonargparse

from dinov2_zoo.arguments.suggestions import explain
from dinov2_zoo.errors import ConfigError


class Parser(jsonargparse.ArgumentParser):
    """Raises ConfigError instead of exiting, and names the nearest option where one is unknown."""

    def error(self, message: str, ex: BaseException | None = None) -> NoReturn:
        """Raise the error in our words."""
        raise ConfigError(explain(message, option_names(self)))


def option_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Dotted names of every option of a parser."""
    return [s[2:] for action in parser._actions for s in action.option_strings if s.startswith("--")]


def config_parser(config_class: type[Any], *, usage: str, resumes: bool) -> Parser:
    """A parser of the fields of a configuration, and of --config, --resume and --help.

    Args:
        config_class: A dataclass; docstrings of its fields are the help.
        usage: First line of the help.
        resumes: Offer --resume.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(allow_abbrev=False, add_help=False, usage=usage)
    parser.add_argument(
        "-h", "--help", nargs="?", metavar="GROUP|all", help="show this, one group of options, or all of them"
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file of settings; options override it")
    if resumes:
        parser.add_argument(
            "--resume",
            nargs="?",
            metavar="RUN|step-N",
            help="continue the run in the folder RUN, with its own settings; without RUN the one that the settings "
            "name, which begins where there is none; from the newest whole checkpoint, or from step-N",
        )
    parser.add_class_arguments(config_class, None)
    return parser
