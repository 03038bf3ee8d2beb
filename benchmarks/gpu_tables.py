"""The figures of benchmarks/gpu.sh as tables for docs/benchmarks.md.

python benchmarks/gpu_tables.py runs/gpu/gpu.json [--out FILE]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; three digits of a number, a dash for what was not measured."""
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,.3g}" if isinstance(value, float) else str(value)


def tables(found: Mapping[str, Any]) -> str:
    """All parts that were measured."""
    machine = found["hardware"]
    parts = [f"{machine['gpu']}, {machine['cores']} cores, torch {machine['torch']}."]
    if machine["tiny"]:
        parts.append("**Tiny sizes, to try the script: no figures to report.**")
    if rates := found.get("rates"):
        parts.append(table(["copy, GB/s", "bf16, TFLOP/s", "TF32", "fp32"], [list(rates.values())]))
    if losses := found.get("losses"):
        rows = [
            (line["rows"], line["prototypes"], way, line[way]["seconds"], line[way]["gib"])
            for line in losses
            for way in ("plain", "chunked", "sinkhorn")
            if way in line
        ]
        parts.append(table(["rows", "prototypes", "loss", "s", "GiB"], rows))
    if attention := found.get("attention"):
        parts.append(table(["attention", "s"], [(line["way"], line["seconds"]) for line in attention]))
    if data := found.get("data"):
        parts.append(table(["workers", "images/s"], [(data["workers"], data["images_per_s"])]))
    if steps := found.get("steps"):
        names = ["teacher", "student", "images", "seconds", "predicted_seconds", "share_of_products", "gib"]
        names.append("predicted_gib")
        parts.append(table([name.replace("_", " ") for name in names], [[line[n] for n in names] for line in steps]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = tables(json.loads(options.figures.read_text()))
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
