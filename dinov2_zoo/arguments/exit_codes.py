"""A user's error is one sentence and an exit code, never a traceback."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn

from dinov2_zoo.errors import Preempted, ZooError


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a recipe's main; a user's error is printed as one sentence, without a traceback, and exits with 2.

    A run that was told to stop exits with 75, see `dinov2_zoo.errors.Preempted`.
    """
    with _in_a_sentence():
        main()
    raise SystemExit(0)


def answer_early(arguments: Callable[[], object]) -> None:
    """Answer `--help` and mistakes on the command line now.

    A recipe calls it before it imports torch, which takes seconds.

    Args:
        arguments: Parses the command line; its result is not used.
    """
    with _in_a_sentence():
        arguments()


@contextmanager
def _in_a_sentence() -> Generator[None, None, None]:
    try:
        yield
    except ZooError as error:
        sys.stderr.write(f"{'stopped' if isinstance(error, Preempted) else 'error'}: {error}\n")
        raise SystemExit(error.exit_code) from None
