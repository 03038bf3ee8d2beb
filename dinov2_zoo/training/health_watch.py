"""Warns when a run's health metrics look like collapse, with what has helped."""

from collections.abc import Callable, Mapping

from dinov2_zoo.training.state import TrainState

# Metric, smallest value that is not worrying, what to say. The limits are chosen here, below what a sound run shows:
# the pretraining demo begins at (1.0 nats, rank 1.7, 0.3 of the images with a prototype of their own) and ends at
# (0.4, 4.6, 0.5).
LIMITS = (
    (
        "health/information",
        0.01,
        "the teacher says nearly the same of every image (information {value:.2g} nats). Collapse: lower "
        "optim.base_lr, raise losses.koleo_weight or the batch, or keep the teacher's temperature low for longer.",
    ),
    (
        "health/rank",
        1.5,
        "class tokens fill one direction only (rank {value:.2g}). Collapse: lower optim.base_lr or raise the batch; "
        "if the images are near copies of each other, thin them out first.",
    ),
    (
        "health/prototypes_used",
        0.05,
        "nearly all images share their prototypes ({value:.1%} different ones). Lower the teacher's temperature, "
        "take --losses.centering sinkhorn, or fewer prototypes for so small a dataset.",
    ),
)


class HealthWatch:
    """A hook: warns once per metric when it is below its limit in two logged lines running, after `from_step`.

    Args:
        say: Prints a sentence.
        from_step: Warm-up is over: before, an untrained network looks like a collapsed one.
    """

    def __init__(self, say: Callable[[str], None], *, from_step: int) -> None:
        self.say = say
        self.from_step = from_step
        self._low: dict[str, int] = {}  # lines in a row below the limit
        self._said: set[str] = set()

    def __call__(self, state: TrainState, line: Mapping[str, float]) -> None:
        """Look at a logged line."""
        if state.step <= self.from_step:
            return
        for name, limit, text in LIMITS:
            if name not in line:
                continue
            self._low[name] = self._low.get(name, 0) + 1 if line[name] < limit else 0
            if self._low[name] >= 2 and name not in self._said:
                self._said.add(name)
                self.say(f"Warning at step {state.step}: {text.format(value=line[name])}")
