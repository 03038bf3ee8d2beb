"""Whoever writes a model's folder leaves one that `verify` passes, that its readers may read, or says why it cannot."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny import features, prototypes

from dinov2_zoo.config import ModelConfig, ObjectiveConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.convert import convert
from dinov2_zoo.hub.export import export
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.student import save_branch, save_student
from dinov2_zoo.hub.verify import failures, verify
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.weights.checksums import compare_checksums

SMALL = ModelConfig(64, 2, 1, img_size=56, num_registers=4)
PLAIN = ModelConfig(64, 2, 1, img_size=56, position_offset=0.1, position_antialias=False)


def model(folder, config=SMALL):
    Dinov2Model(config).save_pretrained(folder)


def converted(to):
    def write(folder):
        model(folder.with_name("source"), PLAIN)
        convert(folder.with_name("source"), folder, to)

    return write


def by_features(folder):
    module = features()
    save_student(folder, module, module.ema.state_dict())


def with_heads(folder):
    module = prototypes()
    save_branch(folder, module.ema, module.ema.state_dict(), data="/home/ada/photos")


def of_timm(name, size):
    def write(folder):
        student = TimmStudent(name, size)
        branch = Branch(student, projector=FeatureProjector(student.class_dim, student.embed_dim, 64))
        module = Distillation(branch, Branch(Dinov2Model(SMALL)), ObjectiveConfig())
        save_student(folder, module, module.ema.state_dict())

    return write


def exported(folder):
    model(folder)
    export(str(folder), folder / "model.onnx", size=56)


WRITERS = {
    "save_pretrained": model,
    "a student by features": by_features,
    "a branch with heads": with_heads,
    "timm's convolutions": of_timm("convnext_atto", 64),
    "timm's transformer at another size": of_timm("vit_tiny_patch16_224", 64),
    "convert to zoo": converted("zoo"),
    "convert to meta": converted("meta"),
    "convert to timm": converted("timm"),
    "convert to transformers": converted("transformers"),
    "export beside the weights": exported,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
def test_every_writer_leaves_a_folder_that_verify_passes_with_the_umasks_rights(tmp_path, writer, mask):
    folder, before = tmp_path / "m", os.umask(mask)
    try:
        WRITERS[writer](folder)
    finally:
        os.umask(before)
    checks = verify(str(folder))
    assert not failures(checks), failures(checks)
    assert [check.passed for check in checks if check.what in ("checksums", "reference photo")] == [True, True]
    assert compare_checksums(folder).unlisted == []
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
    assert not [path for path in tmp_path.iterdir() if path.name not in ("m", "source")]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_file_for_meta_has_the_umasks_rights(tmp_path, name):
    model(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / name, "meta")
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_a_damaged_timm_student_is_found(tmp_path):
    of_timm("convnext_atto", 64)(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    held = bytearray(file.read_bytes())
    held[-1] ^= 0x40
    file.write_bytes(held)
    assert {check.what for check in failures(verify(str(tmp_path / "m")))} == {"checksums", "reference photo"}


def test_local_folders_do_not_get_into_the_heads_file(tmp_path):
    with_heads(tmp_path / "m")
    with safe_open(tmp_path / "m/heads.safetensors", "pt") as file:
        assert file.metadata()["data"] == "photos"


@contextlib.contextmanager
def as_anyone():
    """The rights of a user who is not root, whom nothing is closed to."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def closed():
    """A folder that may be read and not written, below one that may be searched."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        Dinov2Model(SMALL).save_pretrained(Path(place) / "m")
        (Path(place) / "closed").mkdir(mode=0o555)
        yield Path(place)


WRITES = {
    "save": lambda m, place: Dinov2Model(SMALL).save_pretrained(place / "x"),
    "convert": lambda m, place: convert(m, place / "x", "zoo"),
    "convert to a file": lambda m, place: convert(m, place / "x.safetensors", "meta"),
    "export": lambda m, place: export(str(m), place / "x.pt2", size=56),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_folder_that_may_not_be_written_says_so(closed, kind):
    with as_anyone(), pytest.raises(ConfigError, match=r"cannot be written \(.*Permission denied.*name a place"):
        WRITES[kind](closed / "m", closed / "closed")
    (closed / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written \(.*name a place"):
        WRITES[kind](closed / "m", closed / "file")
    assert not any((closed / "closed").iterdir())


@pytest.mark.parametrize("to", ["zoo", "timm", "transformers"])
def test_a_layout_that_is_a_folder_does_not_take_the_name_of_a_file(tmp_path, to):
    model(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"layout is a folder.*or take --to meta"):
        convert(tmp_path / "m", tmp_path / "out.safetensors", to)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
