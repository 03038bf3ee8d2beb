"""What a student is asked to match, compared at equal CPU seconds of steps from the same fitted start.

    python benchmarks/losses.py [--seconds 120] [--seeds 0 1 2] [--ways today eupe ...] [--out FILE]
    python benchmarks/losses.py --data PHOTOS --heldout OTHERS --labelled FOLDER
    python benchmarks/losses.py --ways today --way "mine: gram_weight=1 cosine_weight=1 smooth_l1_weight=0"

Choose on one set of photos and report on another. Seconds are the process's own, reading and decoding among them, so
an objective that costs more gets fewer steps. Whatever the objective, the student is judged by its own tokens through a
linear map that is fitted afterwards on training photos:

    class, patch          cosine with the teacher's token, the teacher's mean taken off both
    class R2, patch R2    explained variance of the teacher's token, mean over channels
    neighbours            share of a patch's 5 nearest that are the teacher's too; through no map
    k-NN                  accuracy on the labelled images, leave-one-out, k = 20
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path

import torch
from paired import Spread
from torch import Tensor

from dinov2_zoo.config import DistillConfig, FeaturesConfig, FinishConfig, LogConfig, OptimConfig, RuntimeConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.finishing import FinishingStage
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.evaluation.distilled.agreement import agreement
from dinov2_zoo.evaluation.distilled.branch_encoder import BATCH, BranchEncoder
from dinov2_zoo.evaluation.distilled.heldout import Examiner, load_images
from dinov2_zoo.hub.build import build_distillation
from dinov2_zoo.initialisation.projector import fit_projector
from dinov2_zoo.initialisation.ridge import fit_maps
from dinov2_zoo.initialisation.student import first_weights
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.tokens import BranchOutput, Tokens
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.recipes import PRESETS, distill_arguments
from dinov2_zoo.training.lane import Lane
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.plan import open_run
from dinov2_zoo.training.preconditioning import measure_coordinates
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

# Weights of the added terms are first guesses, not tuned: try others with --way.
WAYS: dict[str, dict[str, object]] = {
    "today": {},
    "cosine": {"cosine_weight": 1.0, "smooth_l1_weight": 0.0},
    "mse": {"cosine_weight": 0.0, "smooth_l1_weight": 0.0, "mse_weight": 1.0},
    "mse, phi-s": {"cosine_weight": 0.0, "smooth_l1_weight": 0.0, "mse_weight": 1.0, "standardise": "phi-s"},
    "eupe": {"cosine_weight": 0.9, "smooth_l1_weight": 0.1, "class_distance": "cosine", "projector": "mlp"},
    "today, phi-s": {"standardise": "phi-s"},
    "today, mlp": {"projector": "mlp"},
    "+ gram": {"gram_weight": 10.0},
    "+ class gram": {"class_gram_weight": 10.0},
    "+ patch neighbours": {"neighbour_weight": 1.0},
    "+ class neighbours": {"queue_weight": 1.0},
    "+ both neighbours": {"neighbour_weight": 1.0, "queue_weight": 1.0},
    "neighbours alone": {"class_weight": 0.0, "patch_weight": 0.0, "neighbour_weight": 1.0, "class_gram_weight": 10.0},
    "+ finish": {"finish": 0.2},
}
FIGURES = ("class", "patch", "class R2", "patch R2", "neighbours", "k-NN")
PROBE = 3
"""Steps of which the cost of one is measured; the first does not count."""


class Comparison:
    """Photos and settings that all ways share."""

    def __init__(self, options: argparse.Namespace, runtime: Runtime) -> None:
        self.runtime, self.seconds = runtime, options.seconds
        self.taught: dict[int, list[list[BranchOutput]]] = {}
        asked = {"data": options.data, "evaluation.heldout": options.heldout, "evaluation.labelled": options.labelled}
        asked |= {"student": options.student, "relative_lr": options.lr, "loader.workers": 0, "init_images": 300}
        given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        config, _ = distill_arguments([f"--config={PRESETS / 'demo.yaml'}", *given])
        config, _, self.photos, heldout = open_run(config, runtime)
        assert heldout is not None, "the demo's settings keep images out"
        labelled = open_source(config.evaluation.labelled) if config.evaluation.labelled else None
        self.config: DistillConfig = config
        self.examine = Examiner(
            load_images(heldout, config.evaluation.size),
            labelled,
            config=config.evaluation,
            device=runtime.device,
            fit_batches=lambda: [],
            autocast=runtime.autocast,
        )

    def batches(self, seed: int, steps: int, stage: FinishingStage | None = None) -> Iterable[Batch]:
        """Batches of a run."""
        return train_loader(self.photos, self.config.crops, self.config.loader, seed=seed, steps=steps, stage=stage)

    def some(self, seed: int, images: int) -> Iterable[Batch]:
        """Other crops of about so many training photos."""
        return self.batches(seed + 1, -(-images // self.config.loader.batch_size))

    @lru_cache(maxsize=1)  # noqa: B019
    def fits(self, seed: int) -> list[Batch]:
        """Those on which maps into the teacher's space are fitted."""
        return list(self.some(seed, self.config.evaluation.fit_images))

    def module(self, seed: int, features: FeaturesConfig) -> Distillation:
        """A student with random weights."""
        torch.manual_seed(seed)
        objective = dataclasses.replace(self.config.objective, features=features)
        return self.runtime.place(build_distillation(dataclasses.replace(self.config, objective=objective)))

    def start(self, seed: int) -> Distillation:
        """A student with fitted weights."""
        module = self.module(seed, FeaturesConfig())
        first_weights(module, "fitted", self.some(seed, self.config.init_images), self.runtime.autocast)
        return module

    def trained(self, way: dict[str, object], start: Distillation, seed: int) -> tuple[Distillation, int, float]:
        """The module after its seconds, the steps that they were, and what was really spent."""
        way = dict(way)
        finish = FinishConfig(share=float(str(way.pop("finish", 0))))
        module = self.module(seed, FeaturesConfig(**way))  # pyright: ignore[reportArgumentType]
        module.student.backbone.load_state_dict(start.student.backbone.state_dict())
        module.reset_average()
        fit_projector(module, self.fits(seed), device=self.runtime.device, autocast=self.runtime.autocast)
        stage_of = partial(module.finishing, finish, self.config.crops.global_size, seed=seed)
        cost, whole = self.step_cost(module, None), stage_of(steps=1)
        if whole:
            at_sides = [self.step_cost(module, FinishingStage(0, (side,), seed)) for side in whole.sides]
            cost += finish.share * (sum(at_sides) / len(at_sides) - cost)
        steps = max(1, round(self.seconds / cost))
        module.stage = stage_of(steps=steps)
        return module, steps, self.run(module, steps, seed)

    def step_cost(self, module: Distillation, stage: FinishingStage | None) -> float:
        """Seconds of a step."""
        probe = copy.deepcopy(module)
        probe.stage = stage
        spent = [self.run(probe, steps, 0) for steps in (1, PROBE)]
        return (spent[1] - spent[0]) / (PROBE - 1)

    def run(self, module: Distillation, steps: int, seed: int) -> float:
        """Train; CPU seconds."""
        config: OptimConfig = dataclasses.replace(
            self.config.optim,
            steps=steps,
            warmup_steps="auto",
            ema_momentum="auto",
            base_lr=self.config.relative_lr,
        )
        coordinates = measure_coordinates(
            module.student, self.fits(seed), device=self.runtime.device, autocast=self.runtime.autocast
        )
        batch = self.config.loader.batch_size
        state = TrainState.start(module, config, global_batch=batch, coordinates=coordinates)
        log = RunLog(None, LogConfig(progress=False), steps=steps)
        before = time.process_time()
        train(self.runtime, [Lane(state, log)], self.batches(seed, steps, module.stage))
        return time.process_time() - before

    @torch.no_grad()
    def measure(self, module: Distillation, seed: int) -> dict[str, float | None]:
        """The figures of its average."""
        assert self.examine.images is not None
        teacher, own = self.examine.teacher_tokens(module), self.tokens(module.ema, self.examine.images)
        with self.runtime.autocast():
            if seed not in self.taught:  # once for all ways
                crops = [batch.global_crops.to(self.runtime.device) for batch in self.fits(seed)]
                self.taught = {seed: [module.teacher([group]) for group in crops]}
            said = iter(self.taught[seed])
            mapped = fit_maps(module.ema, lambda _: next(said), self.fits(seed), device=self.runtime.device)(own)
        found = agreement(own, mapped, teacher)
        return {
            "class": found.class_cosine_centred,
            "patch": found.patch_cosine_centred,
            "class R2": explained(mapped.class_token, teacher.class_token),
            "patch R2": explained(mapped.patches, teacher.patches),
            "neighbours": found.patch_neighbours,
            "k-NN": self.examine.knn(module.ema),
        }

    def tokens(self, branch: Branch, images: Tensor) -> Tokens:
        """A branch's own tokens."""
        encode = BranchEncoder(branch, self.runtime.device, self.runtime.autocast)
        return Tokens.cat([encode(part) for part in images.split(BATCH)])


def explained(predicted: Tensor, target: Tensor) -> float:
    """1 - squared error / variance of each channel, its mean over channels."""
    predicted, target = predicted.flatten(0, -2).double(), target.flatten(0, -2).double()
    error, variance = (predicted - target).square().mean(0), target.var(0, correction=0)
    return float((1 - error / variance.clamp(min=1e-12)).mean())


def own_way(text: str) -> tuple[str, dict[str, object]]:
    """A way from "NAME: setting=value ..."; settings of `FeaturesConfig`, and finish=SHARE."""
    name, _, settings = text.partition(":")
    pairs = (setting.split("=", 1) for setting in settings.split())
    return name, {key: number(value) for key, value in pairs}


def number(text: str) -> object:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="training photos; default: the demo's")
    parser.add_argument("--heldout", help="photos to judge by; default: some kept out of --data")
    parser.add_argument("--labelled", help="labelled images for k-NN; default: the demo's")
    parser.add_argument("--student", help="default: the demo's")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", default="1.75e-3", help="relative_lr")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--way", action="append", default=[], type=own_way, help='another: "NAME: setting=value ..."')
    parser.add_argument("--out", type=Path, help="a file that every figure is added to, one JSON object a line")
    options = parser.parse_args()
    unknown = [way for way in options.ways if way not in WAYS]
    if unknown:
        parser.error(f"there is no way {', '.join(unknown)}: choose from {', '.join(WAYS)}")
    ways = {name: WAYS[name] for name in options.ways} | dict(options.way)

    with Runtime(RuntimeConfig(threads=options.threads)) as runtime:
        compared = Comparison(options, runtime)
        found: dict[str, list[dict[str, float | None]]] = {name: [] for name in ("start", *ways)}

        def note(name: str, seed: int, figures: dict[str, float | None], **more: float) -> None:
            found[name].append(figures)
            if options.out:
                with options.out.open("a") as file:
                    print(json.dumps({"way": name, "seed": seed, **figures, **more}), file=file)
            print(f"{name} (seed {seed}): " + ", ".join(f"{n} {v:.4g}" for n, v in (figures | more).items() if v))

        for seed in options.seeds:
            start = compared.start(seed)
            note("start", seed, compared.measure(start, seed))
            for name, way in ways.items():
                module, steps, spent = compared.trained(way, start, seed)
                note(name, seed, compared.measure(module, seed), steps=steps, seconds=spent)
    table(found)


def table(found: dict[str, list[dict[str, float | None]]]) -> None:
    """Medians over seeds, and ranges."""
    spread: Callable[[list[float]], str] = lambda values: str(Spread.of(values)) if values else "-"  # noqa: E731
    print(f"\n{'':20}" + "".join(f"{name:>24}" for name in FIGURES))
    for name, figures in found.items():
        columns = [[f for row in figures if (f := row[figure]) is not None] for figure in FIGURES]
        print(f"{name:20}" + "".join(f"{spread(column):>24}" for column in columns))


if __name__ == "__main__":
    main()
