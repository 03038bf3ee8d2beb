"""What GPUs can do, by their makers' data sheets, and the shares of it that are counted on."""

from dataclasses import dataclass

from dinov2_zoo.simulation.watch import Precision

GIB = 2**30

PRODUCTS, MEMORY, LINKS = 0.7, 0.8, 0.75
"""Shares of a data sheet's rate that matrix products, memory and collectives reach (chosen here, not measured)."""
CONTEXT, FRAGMENTED = 1.0, 0.05
"""What is no tensor: GiB of CUDA's context and libraries' buffers, and a share of the card (chosen here)."""


@dataclass(frozen=True)
class Chip:
    """One GPU, and what joins it to others."""

    memory: float
    """GiB that torch sees."""
    products: dict[Precision, float]
    """Dense matrix products by precision, TFLOP/s."""
    bandwidth: float
    """Of the memory, GB/s."""
    link: float
    """To the GPUs of the same machine, GB/s in each direction."""
    network: float
    """To other machines, GB/s in each direction and for each GPU."""
    source: str

    @property
    def room(self) -> float:
        """Bytes that tensors may take."""
        return (self.memory * (1 - FRAGMENTED) - CONTEXT) * GIB


def _products(bf16: float, tf32: float, fp32: float, fp64: float) -> dict[Precision, float]:
    return {"bf16": bf16, "tf32": tf32, "fp32": fp32, "fp64": fp64}


_HOPPER = _products(989, 495, 67, 34)
_AMPERE = _products(312, 156, 19.5, 9.7)

CHIPS = {
    "h100-80": Chip(78.0, _HOPPER, 3350, 450, 50, "NVIDIA H100 data sheet, SXM; DGX H100: 400 Gb/s for each GPU"),
    "h200": Chip(139.0, _HOPPER, 4800, 450, 50, "NVIDIA H200 data sheet, SXM; network as DGX H200"),
    "a100-40": Chip(39.0, _AMPERE, 1555, 300, 25, "NVIDIA A100 data sheet, SXM; DGX A100: 200 Gb/s for each GPU"),
    "a100-80": Chip(78.0, _AMPERE, 2039, 300, 25, "NVIDIA A100 data sheet, SXM; DGX A100: 200 Gb/s for each GPU"),
    "l4": Chip(22.0, _products(121, 60, 30, 0.5), 300, 32, 3, "NVIDIA L4 data sheet; PCIe 4.0; network chosen here"),
    "rtx4090": Chip(
        23.5, _products(165, 83, 83, 1.3), 1008, 32, 3, "NVIDIA Ada whitepaper; PCIe 4.0; network chosen here"
    ),
}
"""By name. Dense rates: data sheets often print twice as much, for sparse matrices."""
