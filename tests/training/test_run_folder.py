"""A run folder belongs to one run: claimed once, refused to others, resumed with the same settings only."""

import errno
import json
import os

import pytest

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder, differences

CONFIG = {"name": "a", "optim": {"steps": 5, "betas": (0.9, 0.99)}, "log": {"every": 1}, "evaluation": {"size": 224}}


def test_a_new_or_empty_folder_is_free_and_checking_creates_nothing(tmp_path):
    check_run_folder(tmp_path / "new", CONFIG, resume=None)
    assert not (tmp_path / "new").exists()
    check_run_folder(tmp_path, CONFIG, resume="auto")


def test_a_claimed_folder_is_refused_but_to_the_same_run_resumed(tmp_path):
    claim_run_folder(tmp_path / "run", CONFIG)
    with pytest.raises(ConfigError, match="continue it with --resume, or choose another --name"):
        check_run_folder(tmp_path / "run", CONFIG, resume=None)
    check_run_folder(tmp_path / "run", CONFIG, resume="auto")
    changed = CONFIG | {"optim": {"steps": 6, "betas": (0.9, 0.99)}}
    with pytest.raises(ConfigError, match=r"optim\.steps: 5 -> 6"):
        check_run_folder(tmp_path / "run", changed, resume="auto")
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"]["optim"]["betas"] == [0.9, 0.99]
    assert {"git", "torch", "machine", "python"} <= record["provenance"].keys()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_folder_of_other_things_is_never_taken(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="no run: choose another --name"):
            check_run_folder(tmp_path, CONFIG, resume=resume)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    """A file in the place of a folder: permissions would not stop root."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/run", tmp_path / "file/runs/run"):
        with pytest.raises(ConfigError, match=r"run|file cannot be written \(Not a directory\): make room.*--runs\.$"):
            check_run_folder(folder, CONFIG, resume=None)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
        (errno.ENOSPC, "No space left on device"),
    ],
)
def test_it_says_why_a_folder_cannot_be_written(tmp_path, monkeypatch, number, words):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    claim_run_folder(tmp_path / "run", CONFIG)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for folder, resume in ((tmp_path / "run", "auto"), (tmp_path / "new", None)):
        with pytest.raises(ConfigError, match=rf"{folder} cannot be written \({words}\): make room"):
            check_run_folder(folder, CONFIG, resume=resume)


def test_what_does_not_change_what_is_learnt_may_change_on_resume():
    free = CONFIG | {"log": {"every": 9}, "evaluation": {"size": 112}}
    assert differences(CONFIG, free) == []
    # Images held out are images not trained on.
    held = {"evaluation": {"heldout_count": 3}}, {"evaluation": {"heldout_count": 4}}
    assert differences(*held) == ["evaluation.heldout_count: 3 -> 4"]
