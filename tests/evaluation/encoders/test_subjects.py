"""Models are named once, and keep their records where one would look for them."""

from pathlib import Path

import pytest

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.encoders.subjects import Subject, subjects


def test_names_are_given_or_the_last_word():
    found = subjects("facebook/dinov2-base, mine=untrained:vits14_reg4,timm:convnext_atto, /x/y.safetensors", None)
    assert [subject.name for subject in found] == ["dinov2-base", "mine", "timm-convnext_atto", "y.safetensors"]
    assert found[1] == Subject("mine", "untrained:vits14_reg4", Path("runs/evaluation/mine"))
    assert not found[1].is_student


def test_a_runs_student_bears_the_runs_name_and_keeps_its_records_there(tmp_path):
    run = tmp_path / "demo"
    (run / "student").mkdir(parents=True)
    assert subjects(f"{run}/student", None)[0].name == "student"  # no run's folder yet
    (run / "config.json").write_text("{}")
    (found,) = subjects(f"{run}/student", None)
    assert (found.name, found.folder) == ("demo", run / "evaluation") and found.is_student
    (found,) = subjects(f"small={run}/student", str(tmp_path / "out"))
    assert (found.name, found.folder) == ("small", tmp_path / "out/small")


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="Several models are called dinov2-base"):
        subjects("facebook/dinov2-base,mirror/dinov2-base", None)
