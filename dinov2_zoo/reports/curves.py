"""Curves of a run's metrics.jsonl as small inline SVG pictures, one per quantity, drawn without a plotting library."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from dinov2_zoo.errors import DataError

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 28, 22

# Counted, not learnt: told in words elsewhere.
NO_CURVE = frozenset({"step", "skipped", "memory_gib", "data_wait", "hours_left", "bad_steps"})
# Drawn after the loss terms.
HOUSEKEEPING = ("lr", "images_per_second")


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read metrics.jsonl as {name: [(step, value), ...]}, finite values only, in the order of first appearance.

    Raises:
        DataError: A line other than an unfinished last one is not a JSON object with a step.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            values: dict[str, object] = json.loads(line)
            step = int(str(values["step"]))
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break  # the run was stopped while it wrote this line
            raise DataError(f"{path}, line {number} is no line of metrics: delete that line.") from None
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((step, float(value)))
    return series


def curves(series: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """SVG pictures: the loss, its terms, gradient norms, then learning rate and speed. One point makes no curve."""
    names = [name for name, points in series.items() if name not in NO_CURVE and len(points) > 1]

    def rank(name: str) -> int:
        if name in HOUSEKEEPING:
            return 3 + HOUSEKEEPING.index(name)
        return 0 if name == "loss" else 2 if name.startswith("gradient_norm") else 1

    return [curve_svg(name, series[name]) for name in sorted(names, key=rank)]


def curve_svg(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One quantity over steps as an SVG element that takes its colours from the page (`currentColor`, `--accent`).

    Args:
        name: Title; underscores become spaces.
        points: (step, finite value), steps ascending, at least two.
    """
    steps, values = [p[0] for p in points], [p[1] for p in points]
    ticks = nice_ticks(min(values), max(values))
    low, high = min(ticks[0], min(values)), max(ticks[-1], max(values))
    first, last = steps[0], steps[-1]

    def x(step: float) -> float:
        return LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    path = " ".join(f"{'L' if i else 'M'}{x(s):.1f} {y(v):.1f}" for i, (s, v) in enumerate(points))
    title = escape(name.replace("_", " ").replace("/", ", "))
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over steps">',
        f'<text class="name" x="0" y="13">{title}</text>',
        f'<text class="last" x="{WIDTH - RIGHT}" y="13" text-anchor="end">{values[-1]:.4g}</text>',
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:.4g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{step:,}</text>')
    parts.append(f'<path class="line" d="{path}"/>')
    parts.append(f'<circle class="dot" cx="{x(last):.1f}" cy="{y(values[-1]):.1f}" r="2.5"/></svg>')
    return "".join(parts)


def nice_ticks(low: float, high: float, count: int = 3) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high; at least two."""
    if high <= low:  # a constant: some room around it
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, end + 1)]
