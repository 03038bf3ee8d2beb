"""The checkpoints of one run: written aside, given a manifest and renamed, while training goes on."""

import contextlib
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import save

from dinov2_zoo.config import CheckpointConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.files import sync_folder
from dinov2_zoo.training.checkpoints.find import checkpoints, step_of
from dinov2_zoo.training.checkpoints.manifest import file_checksums, write_manifest
from dinov2_zoo.training.checkpoints.resume import state_tensors
from dinov2_zoo.training.state import TrainState


class CheckpointWriter:
    """Saves a run's checkpoints as `run_dir/checkpoints/step-N`; a folder of that name is always whole.

    One checkpoint is written at a time, by a thread with a process group of its own, so that it never mixes with the
    training's communication. Every process makes a CheckpointWriter, and calls the same methods in the same order.

    Args:
        run_dir: The run folder, seen by all processes.
        config: Which to keep, and whether to write in the background.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        self.folder = run_dir / "checkpoints"
        self.config = config
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._job: Future[None] | None = None
        self._step = -1  # of the last state given to save
        # torch's remark that one process saves on its own, which is what we asked for. (For good: catching warnings in
        # the thread would meddle with those of the training.)
        warnings.filterwarnings("ignore", message=".*single process.*")

    @property
    def failed(self) -> bool:
        """True once the checkpoint being written cannot be: `wait` says why."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def save(self, state: TrainState) -> None:
        """Save student, average, buffers, optimizer and step; the frozen teacher is not part of a checkpoint.

        Returns once the state is copied, or, where `config.background` is off, once it is on the disk. A step that this
        CheckpointWriter has saved already is not saved again.

        Raises:
            CheckpointError: This checkpoint or the one before could not be written.
        """
        self.wait()
        if state.step == self._step:
            return
        self._step = state.step
        tensors = state_tensors(state)
        if self.config.background:
            tensors = BlockingAsyncStager().stage(tensors)
        record = {
            "step": state.step,
            "bad_steps": state.bad_steps,
            "tensors": {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()},
        }
        self._job = self._writer.submit(self._write, tensors, record)
        if not self.config.background:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint being written, if any, is whole.

        Raises:
            CheckpointError: It could not be written.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Let the thread end, once what it writes is written."""
        self._writer.shutdown()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self.close()

    # ---------------------------------------------------------------- in the thread

    def _write(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Everything of one checkpoint. A mishap on one process is raised on all."""
        step = record["step"]
        partial = self.folder / f".step-{step}.part"
        rank = dist.get_rank() if self._group else 0
        self._together(lambda: self._make_room(partial) if rank == 0 else None, step)

        def write() -> dict[str, dict[str, Any]]:
            save(tensors, checkpoint_id=partial, process_group=self._group, no_dist=self._group is None)
            mine = sorted(partial.glob(f"__{rank}_*")) + ([partial / ".metadata"] if rank == 0 else [])
            return file_checksums(mine)

        files = {name: found for part in self._together(write, step) for name, found in part.items()}
        self._together(lambda: self._publish(partial, {**record, "files": files}) if rank == 0 else None, step)

    def _together(self, action: Callable[[], Any], step: int) -> list[Any]:
        """Do something on each process and tell all what came of it: results, or an error for everyone."""
        result, error = None, ""
        try:
            result = action()
        except (Exception, CheckpointException) as problem:
            error = _in_words(problem)
        outcomes: list[Any] = [(result, error)]
        if self._group is not None:
            outcomes = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(outcomes, (result, error), group=self._group)
        errors = [f"process {rank}: {words}" for rank, (_, words) in enumerate(outcomes) if words]
        if errors:
            free = shutil.disk_usage(self.folder.parent).free
            with contextlib.suppress(OSError):  # make room at once: the disk may be full
                shutil.rmtree(self.folder / f".step-{step}.part", ignore_errors=True)
            last = next(iter(reversed(checkpoints(self.folder))), None)
            rest = f"{last} is whole, and --resume goes on from it" if last else "there is no earlier checkpoint"
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written ({'; '.join(errors)}); {rest}: "
                f"see that the disk has room ({free / 2**20:,.1f} MiB were free) and the folder is writable."
            )
        return [outcome for outcome, _ in outcomes]

    def _make_room(self, partial: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*"):  # of a run that was killed while it wrote or removed them
            shutil.rmtree(left)
        partial.mkdir()

    def _publish(self, partial: Path, record: dict[str, Any]) -> None:
        write_manifest(partial, record)
        folder = self.folder / f"step-{record['step']}"
        if folder.exists():  # one that was found damaged, or left behind by a resume from an earlier one
            folder.rename(self.folder / f".step-{record['step']}.old")
        partial.rename(folder)
        sync_folder(self.folder)
        for old in checkpoints(self.folder)[: -self.config.keep]:
            if not (self.config.keep_every and step_of(old) % self.config.keep_every == 0):
                self._remove(old)
        for aside in self.folder.glob(".step-*"):
            shutil.rmtree(aside)

    def _remove(self, folder: Path) -> None:
        # Renamed first: a folder that is removed file by file would for a while look like a damaged checkpoint.
        folder.rename(folder.with_name(f".{folder.name}.old"))


def _in_words(problem: BaseException) -> str:
    """An error as one line. torch collects those of all processes in a CheckpointException, which is no Exception."""
    while isinstance(problem, CheckpointException):
        problem = next(iter(problem.failures.values()))[0]
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
