"""Colour jitter, grayscale, blur and solarise: one implementation, for a crop in a worker and for a batch on a GPU.

All work in floats of 0..255 and are rounded once at the end; 8-bit transforms round after each, which costs time and
accuracy. In place, for on a CPU new memory would take most of the time. No operation waits for a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

BLUR_KERNEL = 9  # pixels
# Of red, green and blue in grey (ITU-R BT.601, as PIL and torchvision).
GREY = (0.2989, 0.587, 0.114)

Crops = Float[Tensor, "n 3 S S"]
Factors = Float[Tensor, "n 1 1 1"]
ColourSteps = dict[int, tuple[str, float]]
"""What is done to one crop: at places 0 to 6, in that order, an operation by its name in `OPERATIONS` and its factor
(0 where it takes none). Places let the steps of several crops be done together."""


def brighten(crops: Crops, factors: Factors) -> Crops:
    """Multiply."""
    return crops.mul_(factors).clamp_(max=255)


def contrast(crops: Crops, factors: Factors) -> Crops:
    """Move away from, or for factors below 1 towards, the mean grey of the crop."""
    means = crops.mean((-2, -1), keepdim=True)
    return crops.mul_(factors).add_(_grey(means).mul_(1 - factors)).clamp_(0, 255)


def saturate(crops: Crops, factors: Factors) -> Crops:
    """Move away from, or for factors below 1 towards, each pixel's grey."""
    grey = _grey(crops).mul_(1 - factors)
    return crops.mul_(factors).add_(grey).clamp_(0, 255)


def shift_hue(crops: Crops, turns: Factors) -> Crops:
    """Turn every colour's hue by a share of the full circle, at most a third, keeping its HSV saturation and value.

    As torchvision's `adjust_hue`, without divisions, remainders and branches, which took most of its time. With c the
    chroma and y the hue in sixths of a turn from red, -3 to 3, c|y| is a sum of ramps of the channels; and a channel
    lies below the value by c times a trapezoid of its distance from the hue, which is a ramp of absolute values.
    """
    red, green, blue = crops.split(1, dim=1)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    below_low = (low - red).clamp_(min=0)
    hue = (high - red).clamp_(min=0).add_(below_low, alpha=2).add_(high).sub_(low)
    hue = torch.copysign(hue, green - blue, out=hue)
    value, least = torch.maximum(high, red, out=high), torch.minimum(low, red, out=low)
    chroma = value - least
    hue.addcmul_(chroma, 6 * turns)
    # Channels have their centres at 0, 2 and -2: distances stay within 7, where | |y| - 3 | is periodic.
    centres = (
        torch.arange(3, device=crops.device).add_(1).remainder_(3).sub_(1).mul_(2).to(crops.dtype).view(1, 3, 1, 1)
    )
    base = torch.sub(value, chroma, alpha=2, out=below_low)
    torch.addcmul(hue, chroma, centres, value=-1, out=crops)
    crops.abs_().sub_(chroma, alpha=3).abs_().add_(base)
    return torch.clamp(crops, least, value, out=crops)


def to_grey(crops: Crops, _: Factors | None = None) -> Crops:
    """All channels to the pixel's grey."""
    return crops.copy_(_grey(crops).expand_as(crops))


def blur(crops: Crops, sigmas: Factors) -> Crops:
    """Blur by a Gaussian cut off at 9 pixels, borders mirrored.

    As torchvision's `gaussian_blur`, which convolves with 9 x 9 weights; this with 9 and 9, as sums of shifted images,
    for convolutions are slow on three channels. Rows lie behind each other with their margins, so that a shift, in
    either direction, is one of a single long row; what flows from a row into the next stays within the margins.

    Args:
        crops: At least 5 x 5.
        sigmas: Pixels, above 0.
    """
    radius, side = BLUR_KERNEL // 2, crops.shape[-1]
    offsets = torch.arange(radius + 1, device=crops.device)
    raw = offsets.div(sigmas.flatten(1)).square_().mul_(-0.5).exp_()
    raw /= raw.sum(1, keepdim=True).mul_(2).sub_(raw[:, :1])
    weights = raw.split(1, dim=1)  # of distance 0, 1, ..., radius

    def along(line: Tensor, stride: int) -> Tensor:
        length = line.shape[1] - 2 * radius * stride
        out = line.narrow(1, radius * stride, length) * weights[0]
        for offset in range(1, radius + 1):
            for place in (radius - offset, radius + offset):
                out.addcmul_(line.narrow(1, place * stride, length), weights[offset])
        return out

    wide = side + 2 * radius
    padded = torch.nn.functional.pad(crops, [radius] * 4, mode="reflect")
    flat = along(along(padded.flatten(1), 1), wide)
    # The line lost `radius` places at each end in the first pass, and as many rows in the second.
    planes = flat.as_strided((len(crops), 3, side, side), (flat.stride(0), wide * wide, wide, 1))
    return crops.copy_(planes)


def solarise(crops: Crops, _: Factors | None = None) -> Crops:
    """Invert the bright half: of 8-bit values, those from 128 on."""
    return torch.minimum(crops, 255 - crops, out=crops)


def _grey(crops: Float[Tensor, "n 3 *S"]) -> Float[Tensor, "n 1 *S"]:
    red, green, blue = crops.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


OPERATIONS: dict[str, Callable[[Crops, Factors], Crops]] = {
    "brightness": brighten,
    "contrast": contrast,
    "saturation": saturate,
    "hue": shift_hue,
    "grey": to_grey,
    "blur": blur,
    "solarise": solarise,
}


def colour_one(crop: UInt8[Tensor, "3 S S"], steps: ColourSteps) -> UInt8[Tensor, "3 S S"]:
    """Do the steps of one crop."""
    # Resizing leaves the channels innermost in memory; these operations are faster with them outermost.
    crops = torch.empty(1, *crop.shape).copy_(crop)
    for _, (name, factor) in sorted(steps.items()):
        OPERATIONS[name](crops, torch.full((1, 1, 1, 1), factor))
    # By way of 16 bits, for which processors have instructions: a fifth of the time.
    return crops[0].round_().to(torch.int16).to(torch.uint8)


@dataclass(frozen=True)
class ColourPlan:
    """The steps of many crops, those of one operation together. Drawn and grouped on the CPU, done on any device."""

    rows: Int64[Tensor, " m"]
    """Which crops each group is about, group after group."""
    factors: Float[Tensor, " m"]
    """Their factors."""
    groups: tuple[tuple[str, int], ...]
    """Each group's operation and number of crops. Plain numbers: the host need not ask the device."""

    @classmethod
    def of(cls, crops: Sequence[ColourSteps]) -> "ColourPlan":
        """Group the steps of some crops, those at one place after those at the places before it."""
        found: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for row, steps in enumerate(crops):
            for place, (name, factor) in steps.items():
                found.setdefault((place, name), []).append((row, factor))
        groups = sorted(found.items())
        pairs = [pair for _, group in groups for pair in group]
        return cls(
            torch.tensor([row for row, _ in pairs], dtype=torch.int64),
            torch.tensor([factor for _, factor in pairs], dtype=torch.float32),
            tuple((name, len(group)) for (_, name), group in groups),
        )

    def map(self, action: Callable[[Tensor], Tensor]) -> "ColourPlan":
        """The same with its tensors as `action` returns them: moved, pinned."""
        return replace(self, rows=action(self.rows), factors=action(self.factors))

    def __call__(self, crops: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n 3 S S"]:
        """Colour crops of 0..255 in place, and round them to whole levels, as `colour_one` does one."""
        first = 0
        for name, count in self.groups:
            rows, factors = (part.narrow(0, first, count) for part in (self.rows, self.factors))
            crops.index_copy_(0, rows, OPERATIONS[name](crops.index_select(0, rows), factors.view(-1, 1, 1, 1)))
            first += count
        return crops.round_()
