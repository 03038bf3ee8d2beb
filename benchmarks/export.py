"""Exported files beside the model: how far off, how large, how fast on a CPU; in turns.

Run  python benchmarks/export.py MODEL [--side 112] [--batch 8]      MODEL as for Dinov2Model.from_pretrained
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from paired import Spread

from dinov2_zoo import Dinov2Model
from dinov2_zoo.hub.export import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    model = Dinov2Model.from_pretrained(options.model, img_size=options.side)
    pixels = torch.randn(options.batch, 3, options.side, options.side)
    calls = {"torch fp32": lambda: model.forward_features(pixels)}
    print(f"{os.path.basename(options.model)}, {options.batch} images of {options.side} pixels, 1 thread")
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False):
        for precision in ("fp32", "fp16", "int8"):
            file = Path(scratch) / f"{precision}.onnx"
            found = export(options.model, file, size=options.side, precision=precision)
            session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
            calls[f"ONNX {precision}"] = lambda session=session: session.run(None, {"pixels": pixels.numpy()})
            print(
                f"  ONNX {precision}: {found.size / 2**20:.1f} MiB, least cosine of a token {found.least_cosine:.4f}, "
                f"largest difference {found.largest_difference:.1e}"
            )
    rates: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for round_number in range(options.rounds + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if round_number:
                    rates[name].append(options.batch / (time.perf_counter() - start))
    for name, found in rates.items():
        ratio = Spread.of([r / t for r, t in zip(found, rates["torch fp32"], strict=True)])
        print(f"  {name:10} {Spread.of(found)} images/s, {ratio} of torch's")


if __name__ == "__main__":
    main()
