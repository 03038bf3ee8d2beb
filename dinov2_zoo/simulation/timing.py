"""How long a simulated step would take on a GPU: arithmetic, traffic and communication, and what hides behind what.

Operations run one after the other, each as long as its products or its bytes take, whichever is longer. FSDP's
collectives run beside the phase that they belong to, and count where they take longer than it; others are waited for.
Left out: the host's time for launching kernels, which rules small networks; and what `torch.compile` saves by fusing.
"""

from collections import defaultdict
from dataclasses import dataclass

from dinov2_zoo.simulation.chips import LINKS, MEMORY, PRODUCTS, Chip
from dinov2_zoo.simulation.step import Step
from dinov2_zoo.simulation.watch import Collective, Work


@dataclass
class Times:
    """Seconds of a phase."""

    compute: float = 0.0
    """Of operations that are bound by arithmetic."""
    memory: float = 0.0
    """Of those that are bound by memory's bandwidth."""
    beside: float = 0.0
    """Of collectives that run beside the operations."""
    waited: float = 0.0
    """Of collectives that are waited for."""

    @property
    def total(self) -> float:
        """Of the phase."""
        return self.compute + self.memory + self.exposed

    @property
    def exposed(self) -> float:
        """Communication that does not hide."""
        return max(0.0, self.beside - self.compute - self.memory) + self.waited


def predict(step: Step, chip: Chip, *, machine: int = 8) -> dict[str, Times]:
    """Times of a step's phases, in their order.

    Args:
        step: Simulated.
        chip: The GPU.
        machine: GPUs in each machine.
    """
    phases: dict[str, Times] = defaultdict(Times)
    for work in step.works:
        products, memory = seconds_of(work, chip)
        if products > memory:
            phases[work.phase].compute += products
        else:
            phases[work.phase].memory += memory
    for collective in step.collectives:
        seconds = seconds_together(collective, chip, machine)
        if collective.sharding:
            phases[collective.phase].beside += seconds
        else:
            phases[collective.phase].waited += seconds
    return dict(phases)


def seconds_of(work: Work, chip: Chip) -> tuple[float, float]:
    """What an operation's products take, and what its bytes take."""
    products = work.flops / (PRODUCTS * chip.products[work.precision] * 1e12)
    return products, work.traffic / (MEMORY * chip.bandwidth * 1e9)


def seconds_together(collective: Collective, chip: Chip, machine: int) -> float:
    """What a collective takes on rings that use every GPU's link, or every machine's whole network."""
    count = len(collective.ranks)
    if count < 2:
        return 0.0
    machines = len({rank // machine for rank in collective.ranks})
    rate = chip.link if machines == 1 else min(chip.link, chip.network * count / machines)
    passes = 2 if collective.name == "all-reduce" else 1
    return passes * collective.size * (count - 1) / count / (LINKS * rate * 1e9)
