"""Several teachers of one student: how they are named, and how much each counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dinov2_zoo.config.checks import check

NAMED = re.compile(r"\s*([A-Za-z][\w-]*)=(.*)", re.DOTALL)


def named_teachers(teacher: str) -> dict[str, str]:
    """Teachers by name, the main one first, of "name=SOURCE,name=SOURCE"; empty for the source of one without a name.

    Raises:
        ConfigError: A name is without a teacher, stands twice or alone, or a teacher stands twice.
    """
    parts = [NAMED.fullmatch(part) for part in teacher.split(",")]
    if not all(parts):  # a path may hold commas
        check(
            len(parts) == 1 or not any(parts),
            f"teacher {teacher} names some teachers only: write name=SOURCE,name=SOURCE for several.",
        )
        return {}
    pairs = [(part[1], part[2].strip()) for part in parts if part]
    found = dict(pairs)
    for name, source in pairs:
        check(source != "", f"teacher {name} has no source: write {name}=SOURCE.")
    check(len(pairs) > 1, f"teacher {teacher} names one teacher alone: write --teacher {pairs[0][1] or 'SOURCE'}.")
    for kind, all_of in (("name", [name for name, _ in pairs]), ("source", [source for _, source in pairs if source])):
        twice = sorted({one for one in all_of if all_of.count(one) > 1})
        check(not twice, f"teacher has the {kind} {', '.join(twice)} more than once: name each teacher once.")
    return found


@dataclass(frozen=True)
class TeachersConfig:
    """Several teachers (chosen here, unless said)."""

    weights: tuple[float, ...] = ()
    """How much each teacher's loss counts, in the order of `teacher`; the loss is their weighted mean. Default: all
    alike, for each teacher's tokens are brought to one scale first (objective.features.standardise)."""
    drop: float = 0.0
    """Probability that a teacher is left out of a step, each by itself; one is always asked. It saves its forward pass
    (UNIC, 2024, drops teachers too, by their losses)."""

    def __post_init__(self) -> None:
        check(all(weight > 0 for weight in self.weights), "teachers.weights must be above 0: leave a teacher out.")
        check(0 <= self.drop < 1, "teachers.drop is a probability: use 0 or more, and less than 1.")
