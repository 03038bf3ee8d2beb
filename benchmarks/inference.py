"""Features of a batch: `Dinov2Model` against timm and transformers, the same weights and images, in turns.

Run  python benchmarks/inference.py [--sizes s b] [--batch 8] [--side 224] [--precisions fp32 bf16] [--device cuda]
bf16 is that of the weights. Not yet run by us on a GPU.
"""

import argparse
import tempfile
import time
from pathlib import Path

import timm
import torch
import transformers
from paired import Spread

from dinov2_zoo import Dinov2Model, model_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["s", "b"], choices=["ti", "s", "b", "l", "g"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{name}; {options.batch} images of {options.side} pixels")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            Dinov2Model(model_config(f"vit{size}14_reg4")).save_pretrained(folder)
            models = {
                "dinov2_zoo": Dinov2Model.from_pretrained(folder),
                "timm": timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
                "transformers": transformers.AutoModel.from_pretrained(folder).eval(),
            }
        for precision in options.precisions:
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            images = torch.randn(options.batch, 3, options.side, options.side, device=device, dtype=dtype)
            calls = {}
            for library, model in models.items():
                model.to(device, dtype)
                calls[library] = model.forward_features if library != "transformers" else model
            rates: dict[str, list[float]] = {library: [] for library in models}
            with torch.inference_mode():
                for round_number in range(options.rounds + 1):
                    for library, call in calls.items():
                        start = time.perf_counter()
                        call(images)
                        if device.type == "cuda":
                            torch.cuda.synchronize()
                        if round_number:
                            rates[library].append(options.batch / (time.perf_counter() - start))
            for library, found in rates.items():
                ratio = Spread.of([o / r for o, r in zip(rates["dinov2_zoo"], found, strict=True)])
                print(f"  ViT-{size}/14 {precision} {library:13} {Spread.of(found)} images/s  ours / this {ratio}")


if __name__ == "__main__":
    main()
