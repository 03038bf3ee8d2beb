"""One part of benchmarks/gpu.sh: measured on a GPU if there is one, and added to a file of figures.

    python benchmarks/gpu.py PART --out FILE [--tiny]

rates      copy bandwidth; matrix products in bf16, TF32 and fp32
losses     chunked cross-entropy and Sinkhorn-Knopp, forward and backward, against the plain ones
attention  each way to attend within packed crops, forward and backward
data       images/s of the loader, as training reads them
steps      whole steps of distillation, beside what `dinov2-zoo plan` predicts from the measured rates
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov2_zoo.config import CropConfig, DistillConfig, LoaderConfig, ObjectiveConfig, OptimConfig, RuntimeConfig
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.data.workers import usable_cores
from dinov2_zoo.models import attention
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.objectives.centering import sinkhorn_bias
from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets
from dinov2_zoo.simulation.batch import micro_batch
from dinov2_zoo.simulation.chips import GIB, MEMORY, PRODUCTS, Chip
from dinov2_zoo.simulation.networks import build, shapes_of
from dinov2_zoo.simulation.report import seconds as seconds_of_phases
from dinov2_zoo.simulation.runtime import Processes
from dinov2_zoo.simulation.step import first_update, make_ready, settled, simulate
from dinov2_zoo.simulation.timing import predict
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.runtime import Runtime

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.bfloat16 if CUDA else torch.float32
Found = dict[str, Any]


def seconds(action: Callable[[], object], rounds: int = 5) -> float:
    """Of the fastest of some rounds, after one that does not count."""
    found: list[float] = []
    for _ in range(rounds + 1):
        started = now()
        action()
        found.append(now() - started)
    return min(found[1:])


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_of(action: Callable[[], object], *, all_there_is: bool = False) -> float | None:
    """GiB that an action takes beside what is there, or with it; None on a CPU."""
    if not CUDA:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = 0 if all_there_is else torch.cuda.memory_allocated()
    action()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def hardware() -> Found:
    name = torch.cuda.get_device_name() if CUDA else platform.processor() or platform.machine()
    memory = torch.cuda.get_device_properties(0).total_memory / GIB if CUDA else None
    return {"gpu": name, "gib": memory, "cores": usable_cores(), "torch": torch.__version__, "cuda": torch.version.cuda}


def rates(tiny: bool, _: Found) -> Found:
    """GB/s read and written, TFLOP/s by precision."""
    x = torch.empty((2**22 if tiny else 2**30) // 4, device=DEVICE)
    y = torch.empty_like(x)
    found = {"copy_gb_per_s": 2 * x.nbytes / seconds(lambda: y.copy_(x)) / 1e9}
    side = 256 if tiny else 8192
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("fp32", torch.float32, "ieee"),
    ):
        a = torch.randn(side, side, device=DEVICE, dtype=dtype)
        torch.backends.cuda.matmul.fp32_precision = precision
        found[name] = 2 * side**3 / seconds(lambda a=a: a @ a) / 1e12
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    return found


def losses(tiny: bool, _: Found) -> list[Found]:
    """Seconds and GiB of one target's loss with its gradients, plain where it fits."""

    def unit(rows: int, width: int = 256) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, width, device=DEVICE), dim=1)

    found: list[Found] = []
    for rows, count in [(64, 512)] if tiny else [(8192, 65536), (32768, 131072)]:
        z, w = unit(rows).requires_grad_(), unit(count).requires_grad_()
        theirs, prototypes = unit(rows), unit(count)
        targets = [Targets(theirs, prototypes, torch.zeros(count, device=DEVICE), 0.04)]

        def step(way: Callable[..., Tensor], z: Tensor = z, w: Tensor = w, targets: list[Targets] = targets) -> None:
            way(z, w, targets, temperature=0.1).backward()

        def sinkhorn(theirs: Tensor = theirs, prototypes: Tensor = prototypes) -> None:
            sinkhorn_bias(theirs, prototypes, temperature=0.04)

        line: Found = {"rows": rows, "prototypes": count}
        ways = {"chunked": lambda step=step: step(chunked_cross_entropy), "sinkhorn": sinkhorn}
        if rows * count <= 2**30:
            ways["plain"] = lambda step=step: step(plain_cross_entropy)
        for name, way in ways.items():
            line[name] = {"seconds": seconds(way, 3), "gib": peak_of(way)}
        found.append(line)
    return found


def attentions(tiny: bool, _: Found) -> list[Found]:
    """Seconds of a forward and backward pass over packed crops of two sizes, ViT-B's heads."""
    packing = Packing(((2, 17), (4, 5)) if tiny else ((256, 257), (1024, 50)))
    q, k, v = torch.randn(3, sum(packing.lengths), 12, 64, device=DEVICE, dtype=HALF, requires_grad=True).unbind(0)
    found: list[Found] = []
    for way in (attention.sdpa, attention.varlen, attention.xformers):
        works = way is attention.sdpa or attention.works(way, DEVICE, HALF, 64)

        def step(way: attention.Attend = way) -> None:
            torch.autograd.grad(way(q, k, v, packing).float().square().sum(), (q, k, v))

        found.append({"way": way.__name__, "seconds": seconds(step) if works else None})
    return found


def data(tiny: bool, _: Found) -> Found:
    """Images/s of two global and eight local crops, all cores but one reading."""
    source, workers = open_source("package:photos/train"), 0 if tiny else max(1, usable_cores() - 1)
    batch, steps = len(source) // 2, 2 if tiny else 40
    loader = LoaderConfig(batch_size=batch, workers=workers)
    batches = iter(train_loader(source, CropConfig(global_size=224), loader, seed=0, steps=steps))
    next(batches)  # workers start
    started = time.perf_counter()
    count = sum(len(each.sample_ids) for each in batches)
    return {"workers": workers, "images_per_s": count / (time.perf_counter() - started)}


def steps(tiny: bool, before: Found) -> list[Found]:
    """Steps of small and large students from small and large teachers, and what was predicted of them."""
    measured = before["rates"]
    products = {name: measured[name] / PRODUCTS for name in ("bf16", "tf32", "fp32")} | {"fp64": 1.0}
    chip = Chip(hardware()["gib"] or 1.0, products, measured["copy_gb_per_s"] / MEMORY, 1.0, 1.0, "measured here")
    pairs = [("vitb14", "vitti14"), ("vitb14", "vits14"), ("vitl14", "vits14"), ("vitl14", "vitb14")]
    pairs += [("vitg14", "vits14"), ("vitg14", "vitl14")]
    return [_step(*pair, chip=chip, tiny=tiny) for pair in ([("vitti14", "vitti14")] if tiny else pairs)]


def _step(teacher: str, student: str, *, chip: Chip, tiny: bool) -> Found:
    crops = CropConfig(global_size=56 if tiny else 224, local_size=28 if tiny else 98, local_count=8)
    asked = DistillConfig(
        teacher=teacher,
        student=student,
        init="random",
        crops=crops,
        loader=LoaderConfig(batch_size=2 if tiny else 64),
        objective=ObjectiveConfig(kind="features"),
        optim=OptimConfig(steps=1000),
        runtime=RuntimeConfig(precision="bf16" if CUDA else "fp32", threads=1),
    )
    processes = Processes(on_gpus=CUDA)
    planned = simulate(asked, processes)
    config, shape = shapes_of(settled(asked, processes))
    with Runtime(config.runtime) as runtime:
        (module,) = build(config, shape)
        batch = micro_batch(config, module, processes=1)
        lane = make_ready(config, module, runtime, batch)
        first_update(lane.state)

        def run(count: int) -> None:
            lane.state.step = config.optim.steps - count
            train(runtime, [lane], [batch] * count)

        count = 2 if tiny else 5
        took = seconds(lambda: run(count), 2) / count
        peak = peak_of(lambda: run(1), all_there_is=True)
    precision = "bf16" if CUDA else "fp32"
    return {
        "teacher": teacher,
        "student": student,
        "images": config.loader.batch_size,
        "seconds": took,
        "predicted_seconds": seconds_of_phases(predict(planned, chip)),
        "share_of_products": planned.flops / took / (PRODUCTS * chip.products[precision] * 1e12),
        "gib": peak,
        "predicted_gib": planned.peak / GIB,
    }


PARTS = {"rates": rates, "losses": losses, "attention": attentions, "data": data, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes to try it on a CPU")
    options = parser.parse_args()
    found: Found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found["hardware"] = hardware() | {"tiny": options.tiny}
    found[options.part] = PARTS[options.part](options.tiny, found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found[options.part]))


if __name__ == "__main__":
    main()
