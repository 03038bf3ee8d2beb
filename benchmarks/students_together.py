"""Three students of one teacher pass, against three runs: seconds of CPU of a training step, and their ratio.

Run  python benchmarks/students_together.py                                     some 3 minutes of one CPU thread
     python benchmarks/students_together.py --width 1 --depth 1 --device cuda   the real sizes; not run by us on a GPU
A ViT-g teaches ViT-S, B and L by features, through the training loop. On a CPU all networks are made smaller by the
same factors in width and in depth, which leaves the shares of their operations as they are: they are printed for both.
Both sides see the same batches, and must end with the same losses.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from paired import Spread
from torch.utils.flop_counter import FlopCounterMode

from dinov2_zoo.config import LogConfig, ModelConfig, ObjectiveConfig, OptimConfig, RuntimeConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.training.lane import Lane
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

STUDENTS = ("s", "b", "l")
AIM = 0.65


def network(size: str, options: argparse.Namespace, *, meta: bool = False) -> VisionTransformer:
    """A ViT, smaller by the given factors; or at its own size, without memory, for counting."""
    dim, depth, heads = SIZES[size]
    if not meta:
        dim, depth = round(dim * options.width), round(depth * options.depth)
        heads = max(1, round(heads * options.width))
    ffn = "swiglu" if size == "g" else "mlp"
    with torch.device("meta" if meta else "cpu"):
        return VisionTransformer(ModelConfig(dim, depth, heads, img_size=options.size, ffn=ffn))


def teraflops(model: VisionTransformer, options: argparse.Namespace) -> float:
    """Operations of a forward pass of one image, 10^12."""
    device = model.cls_token.device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.forward_features(torch.zeros(1, 3, options.size, options.size, device=device))
    return counter.get_total_flops() / 1e12


def batches(options: argparse.Namespace) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    large = torch.randn(options.steps, 2, options.images, 3, options.size, options.size, generator=draw)
    small, ids = torch.empty(0, options.images, 3, 98, 98), torch.arange(options.images)
    return [Batch(crops, small, ids, ids, step) for step, crops in enumerate(large)]


def run(runtime: Runtime, sizes: Sequence[str], teacher: Branch, options: argparse.Namespace) -> list[list[float]]:
    """Train some students together for a few steps: the losses of each, and at the end its CPU seconds of a step."""
    lanes: list[Lane] = []
    told: list[list[float]] = [[] for _ in sizes]
    for size, losses in zip(sizes, told, strict=True):
        torch.manual_seed(0)
        student = network(size, options)
        projector = FeatureProjector(student.embed_dim, student.embed_dim, teacher.backbone.embed_dim)
        module = runtime.shard(Distillation(Branch(student, projector=projector), teacher, ObjectiveConfig()))
        state = TrainState.start(module, OptimConfig(steps=options.steps), global_batch=options.images)
        log = RunLog(None, LogConfig(every=1, progress=False), steps=options.steps)
        lanes.append(Lane(state, log, [lambda _, line, losses=losses: losses.append(line["loss"])]))
    clock = time.process_time if runtime.device.type == "cpu" else time.perf_counter
    marks: list[float] = []
    lanes[-1].hooks = [*lanes[-1].hooks, lambda *_: marks.append(clock())]
    train(runtime, lanes, batches(options))
    seconds = (marks[-1] - marks[0]) / (options.steps - 1)  # the first step allocates and chooses kernels
    return [*told, [seconds]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25, help="of every network, as a share of its own")
    parser.add_argument("--depth", type=float, default=0.25, help="the same of its depth")
    parser.add_argument("--size", type=int, default=224, help="side of the crops, pixels")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()
    configuration = RuntimeConfig(cpu=options.device == "cpu", threads=1, precision=options.precision)
    with Runtime(configuration) as runtime:
        for what, meta in (("real", True), ("here", False)):
            cost = {size: teraflops(network(size, options, meta=meta), options) for size in ("g", *STUDENTS)}
            parts = "  ".join(f"{size} {cost[size] / cost['g']:.3f}" for size in STUDENTS)
            # A backward pass takes twice a forward one.
            students = 3 * sum(cost[size] for size in STUDENTS)
            expected = (cost["g"] + students) / (len(STUDENTS) * cost["g"] + students)
            print(f"operations of a forward pass over the teacher's, {what}: {parts}; expected ratio {expected:.3f}")
        torch.manual_seed(1)
        teacher = Branch(network("g", options))
        ratios: list[float] = []
        for _ in range(options.rounds):
            *together, (seconds,) = run(runtime, STUDENTS, teacher, options)
            apart = [run(runtime, [size], teacher, options) for size in STUDENTS]
            if together != [losses for losses, _ in apart]:
                raise SystemExit("The losses of students together are not those of their own runs.")
            each = [alone[-1][0] for alone in apart]
            ratios.append(seconds / sum(each))
            runs = " + ".join(f"{alone:.2f}" for alone in each)
            print(f"seconds of a step: together {seconds:.2f}, apart {runs}; ratio {ratios[-1]:.3f}")
    print(f"together over apart: {Spread.of(ratios)} of {options.rounds} rounds (aim: at most {AIM}); equal losses")


if __name__ == "__main__":
    main()
