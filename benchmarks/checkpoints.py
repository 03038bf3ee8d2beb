"""What a checkpoint costs training: the wait for it in the background and in the foreground, in turns, and its size.

Run  python benchmarks/checkpoints.py [--model vits14_reg4] [--rounds 5]
A real distillation state: student with its projector, its average, AdamW's two moments; fp32 on CPU.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from paired import Spread

from dinov2_zoo.config import CheckpointConfig, ObjectiveConfig, OptimConfig
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import build_student
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.training.checkpoints.find import checkpoints
from dinov2_zoo.training.checkpoints.resume import state_tensors
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter
from dinov2_zoo.training.state import TrainState


def start(model: str) -> TrainState:
    teacher = VisionTransformer(model_config("vitti14"))
    student = build_student(model, 224)
    branch = Branch(student, projector=FeatureProjector(student.embed_dim, student.embed_dim, teacher.embed_dim))
    state = TrainState.start(
        Distillation(branch, Branch(teacher), ObjectiveConfig()), OptimConfig(steps=10), global_batch=8
    )
    for parameter in state.student.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()  # AdamW's moments exist from here on
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vits14_reg4")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = start(options.model)
    tensors = state_tensors(state).values()
    print(f"{options.model}: {sum(t.numel() for t in tensors) / 1e6:.0f} million numbers in {len(tensors)} tensors")
    waits: dict[bool, list[float]] = {True: [], False: []}
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(options.rounds + 1):  # the first is not counted
            for background in (True, False):
                run = Path(folder) / str(background)
                shutil.rmtree(run, ignore_errors=True)
                with CheckpointWriter(run, CheckpointConfig(background=background)) as writer:
                    before = time.perf_counter()
                    writer.save(state)
                    wait = time.perf_counter() - before
                    writer.wait()
                    if round_number:
                        waits[background].append(1000 * wait)
                        if background:
                            written.append(1000 * (time.perf_counter() - before))
        saved = checkpoints(run / "checkpoints")[-1]
        size = sum(file.stat().st_size for file in saved.iterdir()) / 2**20
    print(f"training waits, background  {Spread.of(waits[True])} ms (whole on the disk after {Spread.of(written)})")
    print(f"training waits, foreground  {Spread.of(waits[False])} ms")
    print(f"foreground / background     {Spread.of([f / b for b, f in zip(waits[True], waits[False], strict=True)])}")
    print(f"size on the disk            {size:.0f} MiB")


if __name__ == "__main__":
    main()
