"""A plan in words and tables."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dinov2_zoo.evaluation.table import Table
from dinov2_zoo.simulation.chips import GIB, Chip
from dinov2_zoo.simulation.remedies import Trial
from dinov2_zoo.simulation.step import Step
from dinov2_zoo.simulation.timing import Times


def seconds(phases: Mapping[str, Times]) -> float:
    """Of a whole step."""
    return sum(times.total for times in phases.values())


def memory_table(step: Step) -> Table:
    """What stands on a GPU at the peak, and what of it stays from step to step."""
    kinds = [*step.at_peak, *(kind for kind in step.held if kind not in step.at_peak)]
    rows = [(kind, step.at_peak.get(kind, 0) / GIB, step.held.get(kind, 0) / GIB) for kind in kinds]
    rows.append(("all", step.peak / GIB, sum(step.held.values()) / GIB))
    return Table("Memory of a GPU, GiB", ("kind", "at the peak", "always"), rows, note=f"Most at once: {step.where}.")


def time_table(phases: Mapping[str, Times]) -> Table:
    """Seconds of each phase by what bounds them."""
    rows = [(name, t.compute, t.memory, t.exposed, t.total) for name, t in phases.items()]
    sums = (sum(column) for column in zip(*(row[1:] for row in rows), strict=True))
    columns = ("phase", "arithmetic", "memory", "communication not hidden", "all")
    return Table("Time of a step, s, predicted", columns, [*rows, ("all", *sums)])


def collectives_table(step: Step) -> Table | None:
    """How often the processes speak, and how much they say."""
    count, size = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for collective in step.collectives:
        key = collective.name, len(collective.ranks)
        count[key] += 1
        size[key] += collective.size
    rows = [(name, ranks, count[name, ranks], size[name, ranks] / GIB) for name, ranks in count]
    return Table("Collectives of a step", ("kind", "GPUs", "count", "GiB"), rows) if rows else None


def summary(step: Step, phases: Mapping[str, Times], chip: Chip) -> str:
    """The step in two sentences."""
    took = seconds(phases)
    share = step.flops / took / (chip.products["bf16"] * 1e12)
    images = step.config.loader.batch_size
    return (
        f"{images:,} images a step, {step.images} at once on each of {step.processes.count} GPUs; "
        f"{step.flops / 1e12:,.3g} TFLOP and {took:.3g} s a step on each, {images / took:,.0f} images/s, "
        f"{share:.0%} of the GPU's bf16 rate."
    )


def verdict(step: Step, chip: Chip, name: str) -> str:
    """Whether it fits."""
    return (
        f"Needs {step.peak / GIB:.1f} GiB of a GPU, and {name} has {chip.room / GIB:.1f} for tensors: "
        f"{'it fits' if step.peak <= chip.room else 'it does not fit'}."
    )


def figures(step: Step, phases: Mapping[str, Times]) -> dict[str, Any]:
    """All of it in numbers: bytes, FLOPs and seconds of one GPU."""
    together = collectives_table(step)
    return {
        "gpus": step.processes.count,
        "images": step.images,
        "peak": step.peak,
        "at_peak": step.at_peak,
        "where": step.where,
        "held": step.held,
        "flops": step.flops,
        "seconds": seconds(phases),
        "phases": {name: asdict(times) for name, times in phases.items()},
        "collectives": [dict(zip(together.columns, row, strict=True)) for row in together.rows] if together else [],
    }


def trial_line(trial: Trial, chip: Chip) -> str:
    """What a change would do."""
    fits = "fits" if trial.step.peak <= chip.room else "does not fit"
    return f"  {trial.change}: {trial.step.peak / GIB:.1f} GiB, {fits}"
