"""A checkpoint's index is read only if it names what torch writes there, and runs nothing, whoever made it."""

import json
import pickle

import pytest
import tiny_run
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dinov2_zoo.config import CheckpointConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints.find import newest_whole
from dinov2_zoo.training.checkpoints.index import ALLOWED, INDEX, check_index
from dinov2_zoo.training.checkpoints.manifest import file_checksums, read_manifest, write_manifest
from dinov2_zoo.training.checkpoints.resume import load_checkpoint
from dinov2_zoo.training.checkpoints.writer import CheckpointWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*single process.*")


class Listing(pickle.Unpickler):
    """Notes every name that a pickle of our own making holds."""

    def __init__(self, file):
        super().__init__(file)
        self.names = set()

    def find_class(self, module, name):
        found = super().find_class(module, name)
        if not isinstance(found, torch.dtype):
            self.names.add(f"{module}.{name}")
        return found


def names_in(folder):
    with (folder / INDEX).open("rb") as file:
        listing = Listing(file)
        listing.load()
    return listing.names


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def checkpoint(runtime, tmp_path):
    """A state, and its checkpoint with the optimizer's moments."""
    state = tiny_run.start(runtime, tiny_run.config(4))
    for parameter in state.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as writer:
        writer.save(state)
    return state, newest_whole(tmp_path / "run")[0]


def test_the_installed_torch_writes_nothing_that_is_not_allowed(checkpoint, group, tmp_path):
    """If this fails after an update of torch: see what the new names do, then allow them in index.py."""
    tensors = {
        "plain": torch.randn(3, 4),
        "scalar": torch.tensor(5.0),
        "empty": torch.empty(0, 4),
        "strided": torch.randn(4, 4).T,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "sharded": distribute_tensor(torch.randn(6, 2), init_device_mesh("cpu", (1,)), [Shard(0)]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        **{
            str(t): torch.ones(2).to(t) for t in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
        },
    }
    save(tensors, checkpoint_id=tmp_path / "all")
    for folder in (checkpoint[1], tmp_path / "all"):
        assert names_in(folder) <= ALLOWED, f"new in torch {torch.__version__}: {sorted(names_in(folder) - ALLOWED)}"
        check_index(folder)
    assert any(name.endswith("TensorStorageMetadata") for name in names_in(tmp_path / "all"))


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def reseal(folder):
    """Rewrite a manifest as a stranger may, who has changed the files."""
    record = read_manifest(folder)
    record["files"] = file_checksums(folder / name for name in record["files"])
    write_manifest(folder, {name: value for name, value in record.items() if name != "format"})


def test_an_index_that_runs_something_is_refused_and_named(checkpoint, tmp_path):
    state, folder = checkpoint
    (folder / INDEX).write_bytes(pickle.dumps(Canary(tmp_path / "sang")))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"names (_?io)\.open, which is not allowed.*get the checkpoint from"):
        load_checkpoint(folder, state)
    assert not (tmp_path / "sang").exists()
    pickle.loads((folder / INDEX).read_bytes())
    assert (tmp_path / "sang").exists(), "the canary is dead, the test proves nothing"


def test_an_entry_of_bytes_is_refused_because_torch_would_unpickle_it(checkpoint, tmp_path):
    """The entry stands where the run expects a tensor."""
    state, folder = checkpoint
    name = "module.student.projector.bias"
    tensors = {f"module.{n}": t for n, t in state.tensors().items()} | {name: Canary(tmp_path / "sang")}
    save(tensors, checkpoint_id=tmp_path / "strange", no_dist=True)
    record = json.loads((folder / "manifest.json").read_text())
    for path in folder.iterdir():
        path.unlink()
    for path in (tmp_path / "strange").iterdir():
        path.rename(folder / path.name)
    record["files"] = file_checksums(folder.iterdir())
    record["tensors"] = {n: entry for n, entry in record["tensors"].items() if n.startswith("module.")}
    write_manifest(folder, {n: value for n, value in record.items() if n not in ("format", "sha256")})
    assert newest_whole(tmp_path / "run") == (folder, [])
    (tmp_path / "sang").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"names torch\.distributed\.checkpoint\.metadata\.BytesStorageMetadata"):
        load_checkpoint(folder, state)
    assert not (tmp_path / "sang").exists()
    load({name: torch.empty(8)}, checkpoint_id=folder, no_dist=True)
    assert (tmp_path / "sang").exists(), "the canary is dead, the test proves nothing"


def test_a_damaged_index_is_an_error(checkpoint):
    state, folder = checkpoint
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-20])
    reseal(folder)
    with pytest.raises(CheckpointError, match="is not an index that torch has written"):
        load_checkpoint(folder, state)
