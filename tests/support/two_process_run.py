"""Trains tiny runs and leaves what came out in a folder; run plainly, and under `accelerate launch` as two processes.

Usage: two_process_run.py OUT DTYPE SCENARIO...
"""

import contextlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import tiny_run
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from dinov2_zoo.config import (
    CheckpointConfig,
    FeaturesConfig,
    HeadConfig,
    ModelConfig,
    ObjectiveConfig,
    PrototypesConfig,
    RuntimeConfig,
    SelfDistillationConfig,
    TeachersConfig,
)
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.drop_path import DropPath, Share, draw_kept
from dinov2_zoo.data.finishing import FinishingStage
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.self_distillation import SelfDistillation
from dinov2_zoo.objectives.several_teachers import FurtherTeachers, SeveralTeachers
from dinov2_zoo.training import loop
from dinov2_zoo.training.checkpoints.find import newest_whole
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.guard import Guard
from dinov2_zoo.training.lane import Lane
from dinov2_zoo.training.preconditioning import measure_coordinates
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

STEPS, CUT, IMAGES = 6, 3, 8
ACCUMULATED = ("relations", "ema", "pretrain")
"""Runs whose steps come in two micro-batches on each of several processes, and in one piece on a single one."""
DROPPED = DropPath(0.4, depth=4, seed=0)
"""Stochastic depth of the pretraining run."""


def network(dim, depth=2):
    shape = {"depth": depth, "num_heads": 2, "patch_size": 4, "img_size": 16, "num_registers": 2, "layer_scale": 1.0}
    return VisionTransformer(ModelConfig(embed_dim=dim, **shape))


def distillation(kind):
    """A ViT of 32 channels teaches one of 16, with every part that the real recipe has; or its own average does."""
    # Deep enough that hardly a class token passes by all attention: KoLeo's gradient explodes where two are equal.
    student, teacher = network(16, DROPPED.depth if kind == "pretrain" else 2), network(32)
    if kind == "relations":  # every term, in a run whose last steps see several sizes
        weights = {name: 1.0 for name in ("gram_weight", "class_gram_weight", "neighbour_weight", "queue_weight")}
        more = {"standardise": "phi-s", "projector": "mlp", "queue_size": 40, "neighbour_patches": 3}
        student = Branch(student, projector=FeatureProjector(16, 16, 32, "mlp"))
        objective = ObjectiveConfig(features=FeaturesConfig(**weights, **more))
        module = Distillation(student, Branch(teacher), objective)
        module.stage = FinishingStage(CUT + 1, (12, 16, 24), 0)
        return module
    if kind == "teachers":  # one of them is left out of some steps
        further = FurtherTeachers([Branch(TeacherView(network(24), multiple=8))])
        projectors = FeatureProjector(16, 16, 32), FeatureProjector(16, 16, 24)
        student = Branch(student, projector=projectors[0], further=projectors[1:])
        config, settings = ObjectiveConfig(), TeachersConfig(weights=(2.0, 1.0), drop=0.4)
        return SeveralTeachers(student, Branch(teacher), further, config, names="ab", settings=settings, seed=0)
    if kind == "features":
        pair = Branch(student, projector=FeatureProjector(16, 16, 32)), Branch(teacher)
        return Distillation(*pair, ObjectiveConfig(kind="features"))
    sizes = HeadConfig(prototypes=24, hidden=16, bottleneck=8)
    branches = [
        Branch(net, dino=PrototypeHead(dim, sizes), ibot=PrototypeHead(dim, sizes))
        for net, dim in ((student, 16), (teacher, 32))
    ]
    if kind == "pretrain":
        config = SelfDistillationConfig(drop_path=DROPPED.rate, temperature_warmup_steps=4)
        return SelfDistillation(branches[0], PrototypesConfig(chunk=16), config)
    prototypes = PrototypesConfig(centering=kind, chunk=16)
    return Distillation(*branches, ObjectiveConfig(kind="prototypes", prototypes=prototypes))


def micro_batches(runtime, kind):
    """Per step and process."""
    return 2 if kind in ACCUMULATED and runtime.world_size > 1 else 1


def batches(runtime, start=0, kind=None):
    """This process's part of each step's images, perhaps in micro-batches: two global views and one local one."""
    accumulate = micro_batches(runtime, kind)
    share = IMAGES // runtime.world_size // accumulate
    drop_path = DROPPED if kind == "pretrain" else None
    for step in range(start, STEPS):
        generator = torch.Generator().manual_seed(step)
        large = torch.randn(2, IMAGES, 3, 16, 16, generator=generator).to(torch.get_default_dtype())
        small = torch.randn(1, IMAGES, 3, 8, 8, generator=generator).to(torch.get_default_dtype())
        ids = torch.arange(step * IMAGES, (step + 1) * IMAGES)
        # Another number of masked patches in every crop, none in some.
        masks = torch.rand(2, IMAGES, 16, generator=generator) < torch.linspace(0, 0.6, IMAGES)[:, None]
        for part in range(accumulate):
            first = (runtime.rank * accumulate + part) * share
            mine = slice(first, first + share)
            kept = drop_path and draw_kept(drop_path, (2, 1), Share(step, first, share, IMAGES))
            images = large[:, mine], small[:, mine], ids[mine], ids[mine]
            batch = Batch(*images, step, drop_path=kept)
            yield batch.hiding(masks[:, mine]) if kind == "pretrain" else batch


def start(runtime, kind, seed=0):
    torch.manual_seed(seed)
    module = distillation(kind)
    for lesson in module.lessons() if kind in ("features", "relations", "teachers") else ():
        fit_projector(module, batches(runtime), device=runtime.device, autocast=runtime.autocast, lesson=lesson)
    accumulate, coordinates = micro_batches(runtime, kind), None
    optim = tiny_run.config(STEPS, base_lr=1e-2, ema_momentum=(0.9, 1.0), accumulate=accumulate)
    if kind == "relations":
        optim = replace(optim, weight_decay=(0.0, 0.0))
        coordinates = measure_coordinates(module.student, batches(runtime), device=runtime.device)
    state = TrainState.start(runtime.shard(module), optim, global_batch=IMAGES, coordinates=coordinates)
    if kind == "relations":  # the average of the second step is the best, and the fourth's is worse than the start
        scores = {2: 2.0, 4: 0.0, STEPS: 1.5}
        state.guard = Guard(state.student, state.ema, measure=lambda: scores[state.step], start=1.0, steps=STEPS)
        state.guard.every = 2
    return state


def watch(state, _):
    if state.guard:
        state.guard(state.step, print)


def scenario(runtime, out, kind):
    """Train; then again with a stop, a checkpoint and a restart half way. Rank 0 writes what came out."""
    lines = []
    state = start(runtime, kind)
    tiny_run.train(
        runtime,
        state,
        batches(runtime, kind=kind),
        tiny_run.silent_log(STEPS),
        [watch, lambda _, line: lines.append(dict(line))],
    )

    broken = start(runtime, kind)

    def stop(state, _):
        if state.step == CUT:
            with CheckpointWriter(out / kind, CheckpointConfig(keep=1)) as writer:
                writer.save(state)
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        tiny_run.train(runtime, broken, batches(runtime, kind=kind), tiny_run.silent_log(STEPS), [watch, stop])
    resumed = start(runtime, kind)
    load_checkpoint(newest_whole(out / kind)[0], resumed)
    tiny_run.train(runtime, resumed, batches(runtime, CUT, kind), tiny_run.silent_log(STEPS), [watch])
    for each in (state, resumed):
        if each.guard:
            each.guard.finish()
    resumed_equal = all(torch.equal(a, b) for a, b in zip(local(resumed), local(state), strict=True))

    parameters = list(state.module.parameters())
    facts = {
        "world_size": runtime.world_size,
        "sharded": all(isinstance(p, DTensor) for p in parameters),
        "local_share": sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
        / sum(p.numel() for p in parameters),
        "resumed_equal": not runtime.any_true(not resumed_equal),
        "lines": lines,
    }
    weights = runtime.full_state_dict(state.student)
    weights |= {f"ema.{name}": tensor for name, tensor in runtime.full_state_dict(state.ema).items()}
    weights |= {f"buffer.{name}": b.detach().clone() for name, b in state.module.named_buffers(recurse=False)}
    if kind == "relations":
        weights["guard"] = state.guard.tensors()["numbers"]
        weights["queue"] = state.module.objective.queue.tokens.clone()
    if runtime.is_main:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / f"{kind}.safetensors")
        (out / f"{kind}.json").write_text(json.dumps(facts))


def several(runtime, out):
    """Two students of one teacher, together; each alone; and together from checkpoints half way."""

    def start(*widths):
        states, teacher = [], None
        for width in widths:
            torch.manual_seed(1)
            teacher = teacher or Branch(network(32))
            torch.manual_seed(2)
            student = Branch(network(width), projector=FeatureProjector(width, width, 32))
            module = Distillation(student, teacher, ObjectiveConfig())
            optim = tiny_run.config(STEPS, base_lr=1e-2, ema_momentum=(0.9, 1.0))
            states.append(TrainState.start(runtime.shard(module), optim, global_batch=IMAGES))
        return states

    def run(states, *, hooks=None, first=0):
        told = [[] for _ in states]
        hooks = hooks or [[] for _ in states]
        keep = [lambda _, line, lines=lines: lines.append(line.get("loss")) for lines in told]
        lanes = [
            Lane(state, tiny_run.silent_log(STEPS), [*more, note])
            for state, more, note in zip(states, hooks, keep, strict=True)
        ]
        loop.train(runtime, lanes, batches(runtime, first))
        return told

    def same(mine, theirs):
        pairs = [(a, b) for m, t in zip(mine, theirs, strict=True) for a, b in zip(local(m), local(t), strict=True)]
        return not runtime.any_true(not all(torch.equal(a, b) for a, b in pairs))

    together, alone = start(16, 24), [*start(16), *start(24)]
    losses = run(together)
    losses_alone = [line for state in alone for line in run([state])]
    with contextlib.ExitStack() as stack:
        folders = [out / f"several/{i}" for i in range(2)]
        writers = [stack.enter_context(CheckpointWriter(folder, CheckpointConfig())) for folder in folders]
        hooks = [[lambda s, _, w=writer: w.save(s) if s.step == CUT else None] for writer in writers]
        run(start(16, 24), hooks=hooks)
    resumed = start(16, 24)
    for folder, state in zip(folders, resumed, strict=True):
        load_checkpoint(newest_whole(folder)[0], state)
    run(resumed, first=CUT)
    facts = {
        "one_teacher": together[0].module.teacher is together[1].module.teacher,
        "losses": losses,
        "losses_alone": losses_alone,
        "equal_alone": same(together, alone),
        "resumed_equal": same(together, resumed),
        # Looked at last: reading a state's tensors shards again what a forward pass has gathered.
        "sharded": all(isinstance(p, DTensor) for state in together for p in state.module.parameters()),
    }
    if runtime.is_main:
        (out / "several.json").write_text(json.dumps(facts))


def local(state):
    return [t.to_local() if isinstance(t, DTensor) else t for t in state.tensors().values()]


def mishaps(runtime, out):
    """What goes wrong on one process must stop all of them alike. Two processes only."""
    torch.manual_seed(runtime.rank)
    different = refused(lambda: runtime.shard(tiny_run.Match()))

    state = tiny_run.start(runtime, tiny_run.config(STEPS))
    state.module.poison_from = 2 if runtime.rank == 1 else None
    seen = {}

    def keep(state, _):
        seen.update({name: tensor.to_local().clone() for name, tensor in state.tensors().items() if "." in name})

    data = tiny_run.batches(STEPS, rank=runtime.rank, world=2)
    not_finite = refused(lambda: tiny_run.train(runtime, state, data, tiny_run.silent_log(STEPS, out), [keep]))
    untouched = all(torch.equal(seen[n], t.to_local()) for n, t in state.tensors().items() if "." in n)
    told = runtime.gather([different, not_finite, untouched, state.step])
    if runtime.is_main:
        (out / "mishaps.json").write_text(json.dumps(told))


def refused(action):
    """The message of the TrainingError that an action raises; empty when it raises none."""
    try:
        action()
    except TrainingError as error:
        return str(error)
    return ""


def main(out, dtype, *kinds):
    torch.set_default_dtype(getattr(torch, dtype))
    precision = "bf16" if dtype == "float32" else "fp32"
    with Runtime(RuntimeConfig(precision=precision, cpu=True, threads=1)) as runtime:
        for kind in kinds:
            {"mishaps": mishaps, "several": several}.get(kind, partial(scenario, kind=kind))(runtime, out=Path(out))
    torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
