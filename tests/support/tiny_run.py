"""A training run small enough to reason about: linear blocks, a frozen teacher, an average; batches from a seed."""

import copy

import torch
from torch import nn

from dinov2_zoo.config import LogConfig, OptimConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.training import loop
from dinov2_zoo.training.lane import Lane
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.state import TrainState

SIDE, WIDTH = 4, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.fc(self.norm1(x)))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.unused_token = nn.Parameter(torch.ones(1, WIDTH))  # like mask_token: never in a distillation's graph
        self.patch_embed = nn.Sequential(nn.Linear(3 * SIDE * SIDE, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = self.patch_embed(x) + self.cls_token[0]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.projector = Backbone(), nn.Linear(WIDTH, 8)

    def forward(self, crops):
        return self.projector(self.backbone(crops[0].flatten(2)))


class Match(nn.Module):
    """The student's output against the teacher's; `steps_seen` is a statistic that a checkpoint must carry."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Branch(), Branch().requires_grad_(False)
        self.ema = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("steps_seen", torch.zeros(()))
        self.poison_from = None

    def forward(self, batch):
        self.steps_seen += 1
        with torch.no_grad():
            target = self.teacher([batch.global_crops])
        match = (self.student([batch.global_crops]) - target).square().mean()
        if self.poison_from is not None and self.steps_seen > self.poison_from:
            match = match * float("nan")
        return {"loss": match + 0.0, "match": match.detach()}


def batches(steps, *, accumulate=1, size=8, rank=0, world=1, start=0):
    """Micro-batches of a run: the same `size` images per step however they are split."""
    share = size // accumulate // world
    for step in range(start, steps):
        images = torch.randn(2, size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(step))
        for micro in range(accumulate):
            first = micro * (size // accumulate) + rank * share
            mine = slice(first, first + share)
            yield Batch(
                global_crops=images[:, mine].to(torch.get_default_dtype()),
                local_crops=torch.empty(0, share, 3, 2, 2),
                sample_ids=torch.arange(step * size, (step + 1) * size)[mine],
                seeds=torch.arange(size)[mine],
            )


def config(steps, **changes):
    settings = {"steps": steps, "warmup_steps": 2, "base_lr": 0.1, "freeze_last_layer_steps": 0} | changes
    return OptimConfig(**settings)


def start(runtime, optim, *, seed=0):
    torch.manual_seed(seed)
    return TrainState.start(runtime.shard(Match()), optim, global_batch=8)


def silent_log(steps, run_dir=None, **more):
    return RunLog(run_dir, LogConfig(every=1, progress=False), steps=steps, **more)


def train(runtime, state, batches, log, hooks=(), **more):
    """The loop with one run in it."""
    loop.train(runtime, [Lane(state, log, hooks)], batches, **more)
