"""Go on with a finished run for a short while at a higher resolution: pretraining or distillation.

Paper     Oquab et al. 2023, sections 4 and B.2: the last 10,000 steps at 518 pixels, all schedules compressed to them,
          a lower learning rate, positions resampled from 16 x 16 to 37 x 37. The paper says neither how much lower nor
          how large the local crops are: chosen here, a tenth, and as before (DINOv3's own stage: 512 and 112 pixels).
Try it    dinov2-zoo adapt-resolution runs/demo --size 224 --steps 20
Result    runs/<name of the run>_<size>, as the recipe that made the run leaves it.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov2_zoo.arguments import parse, run
from dinov2_zoo.config import DistillConfig, FinishConfig, OptimConfig, PretrainConfig, from_dict
from dinov2_zoo.errors import ConfigError


@dataclass(frozen=True)
class AdaptConfig:
    """What changes; everything else stays as it was in the run."""

    run: str
    """Folder of a finished run of recipes/pretrain.py or recipes/distill.py."""
    size: int = 518
    """Side of the global crops, pixels (paper: 518)."""
    steps: int = 10_000
    """Optimizer steps (paper: 10,000)."""
    lr_share: float = 0.1
    """Share of the run's base learning rate (chosen here)."""
    batch_size: int | None = None
    """Images per step; default: as before. The learning rate follows by the square-root rule."""
    accumulate: int | None = None
    """Micro-batches per step; default: as before."""

    def adapted(self) -> PretrainConfig | DistillConfig:
        """The configuration of the new run.

        Raises:
            ConfigError: There is no such run, or it has not finished.
        """
        folder = Path(self.run)
        record = folder / "config.json"
        if not record.is_file():
            raise ConfigError(f"{folder} holds no run: name the folder of a finished one with --run.")
        settings: dict[str, Any] = json.loads(record.read_text())["config"]
        distilled = "teacher" in settings
        old = from_dict(DistillConfig if distilled else PretrainConfig, settings)
        export = folder / ("student" if distilled else "teacher")
        if not export.is_dir():
            raise ConfigError(f"{folder} has not finished: continue it with --resume first.")
        pace = self.steps / old.optim.steps
        changes: dict[str, Any] = {
            "name": f"{old.name}_{self.size}",
            "init": str(export),
            "crops": dataclasses.replace(old.crops, global_size=self.size),
            "loader": dataclasses.replace(old.loader, batch_size=self.batch_size or old.loader.batch_size),
            "optim": self.compressed(old.optim, pace),
            "evaluation": dataclasses.replace(old.evaluation, size=self.size),
        }
        if isinstance(old, DistillConfig):
            changes["relative_lr"] = old.relative_lr * self.lr_share
            changes["targets"] = None  # they are of crops of the old size: the teacher itself is asked
        if isinstance(old, PretrainConfig):
            warmup = round(old.self_distillation.temperature_warmup_steps * pace)
            changes["self_distillation"] = dataclasses.replace(old.self_distillation, temperature_warmup_steps=warmup)
        else:
            changes["finish"] = FinishConfig()  # its sizes were for the old size
        return dataclasses.replace(old, **changes)

    def compressed(self, optim: OptimConfig, pace: float) -> OptimConfig:
        """The run's schedules in the new number of steps."""
        return dataclasses.replace(
            optim,
            steps=self.steps,
            warmup_steps=round(optim.warmup_steps * pace),
            freeze_last_layer_steps=round(optim.freeze_last_layer_steps * pace),
            base_lr=optim.base_lr * self.lr_share,
            final_lr=min(optim.final_lr, optim.base_lr * self.lr_share),
            accumulate=self.accumulate or optim.accumulate,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run."""
    config, options = parse(AdaptConfig, argv, script=Path(__file__), position="run")
    new = config.adapted()

    from dinov2_zoo.recipes import distill, pretrain

    if isinstance(new, DistillConfig):
        distill.launch(new, resume=options.resume)
    else:
        pretrain.launch(new, resume=options.resume)


if __name__ == "__main__":
    run(main)
