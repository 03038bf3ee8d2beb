"""Several students of one teacher pass come out as each would alone, together with their folders."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_teacher import images_and_teacher
from stopped_training import after_step, killed_after_step

import dinov2_zoo
from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError, ConfigError, Preempted, TrainingError
from dinov2_zoo.models import zoo
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.recipes import distill_arguments
from dinov2_zoo.training.preemption import SIGNALS

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--crops.global_size=56 --crops.local_count=1 --crops.local_size=28 --loader.batch_size=4 --loader.workers=0 "
    "--optim.accumulate=2 --optim.steps=6 --optim.warmup_steps=1 --checkpoint.every=2 --evaluation.every=3 "
    "--evaluation.heldout_count=4 --evaluation.fit_images=8 --init_images=8 --evaluation.labelled=null "
    "--evaluation.size=56 --runtime.threads=1 --runtime.precision=fp32 --log.every=1 --log.progress=false"
)
PAIR = ("tiny14", "small14")
# A size that divides by 14 and by 16: students of different patches have different grids, which features resample.
LARGER = "--crops.global_size=112 --crops.local_count=0 --evaluation.size=112"
HEADS = "--objective.kind=prototypes --heads=random --objective.patch_share=0.5"
for head in ("dino_head", "ibot_head"):
    HEADS += f" --{head}.prototypes=16 --{head}.hidden=8 --{head}.bottleneck=4"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, and a teacher."""
    folder = tmp_path_factory.mktemp("several")
    images_and_teacher(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def small_students():
    """Names of students that train in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "tiny14", ModelConfig(16, 2, 1, layer_scale=1.0))
        patch.setitem(zoo.MODELS, "small14", ModelConfig(32, 3, 2, num_registers=4, layer_scale=1.0))
        yield


@pytest.fixture(scope="module")
def distil(place):
    """Runs the recipe as a command line would."""
    from dinov2_zoo.recipes import distill

    def call(runs, *more):
        fixed = [f"--config={ROOT}/recipes/configs/demo.yaml", f"--data={place}/images", f"--teacher={place}/teacher"]
        config, arguments = distill_arguments([*fixed, "--name=x", f"--runs={runs}", *OPTIONS.split(), *more])
        distill.launch(config, resume=arguments.resume)

    return call


@pytest.fixture(scope="module")
def undisturbed(distil, tmp_path_factory):
    """Both students' runs, from beginning to end."""
    runs = tmp_path_factory.mktemp("undisturbed")
    distil(runs, "--students", *PAIR)
    return runs


def lines(run):
    """The metrics of a run, but for how fast it was."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timings = ("images_per_second", "hours_left", "data_wait")
    return [{name: value for name, value in line.items() if name not in timings} for line in found]


def assert_same_run(got, expected):
    """Bit for bit: every line, every weight of every checkpoint and of the student; and the settings."""
    assert lines(got) == lines(expected) and len(lines(got)) > 6
    settings = [json.loads((run / "config.json").read_text())["config"] for run in (got, expected)]
    for name in settings[0].keys() - {"name", "runs"}:
        assert settings[0][name] == settings[1][name], name
    files = sorted(str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(got)) for file in got.rglob("*") if file.is_file()) == files
    assert "features.jpg" in files and "report.html" in files and "checkpoints/step-6/manifest.json" in files
    for file in (file for file in files if file.endswith(".safetensors")):
        mine, theirs = load_file(got / file), load_file(expected / file)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in theirs), file
    measured = [json.loads((run / "measured.json").read_text()) for run in (got, expected)]
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("students", "more"), [((*PAIR, "timm:test_vit"), LARGER), (PAIR, HEADS)], ids=["features", "prototypes"]
)
def test_each_student_comes_out_as_from_its_own_run(distil, tmp_path, monkeypatch, students, more):
    asked, whole = [], Distillation.teach
    monkeypatch.setattr(Distillation, "teach", lambda self, batch: asked.append(1) or whole(self, batch))
    distil(tmp_path, "--students", *students, *more.split())
    # Twelve micro-batches, and before them the plan: four steps, and three times what is fitted on each student alone.
    assert len(asked) == 12 + 4 + 3 * len(students)
    for student in students:
        distil(tmp_path, f"--name=alone-{student.removeprefix('timm:')}", f"--student={student}", *more.split())
        name = student.replace(":", "-")
        assert_same_run(tmp_path / f"x-{name}", tmp_path / f"alone-{student.removeprefix('timm:')}")
    different = [lines(tmp_path / f"x-{student}")[-1]["loss"] for student in PAIR]
    assert different[0] != different[1]


@pytest.fixture
def resume():
    """Goes on with a run by its folder alone."""
    from dinov2_zoo.recipes import distill

    def call(run):
        config, arguments = distill_arguments([f"--resume={run}"])
        distill.launch(config, resume=arguments.resume)

    return call


def test_killed_runs_go_on_together_or_each_alone(distil, resume, undisturbed, tmp_path, monkeypatch):
    with killed_after_step(5, monkeypatch):
        distil(tmp_path / "killed", "--students", *PAIR)
    shutil.copytree(tmp_path / "killed", tmp_path / "apart")
    # As if the kill had come while the second student's checkpoint was written: both go back to the one before.
    shutil.rmtree(tmp_path / "killed/x-small14/checkpoints/step-4")
    distil(tmp_path / "killed", "--students", *PAIR, "--resume")
    resume(tmp_path / "apart/x-tiny14")
    assert_same_run(tmp_path / "apart/x-tiny14", undisturbed / "x-tiny14")
    for student in PAIR:
        assert_same_run(tmp_path / f"killed/x-{student}", undisturbed / f"x-{student}")


@pytest.fixture
def signals_as_before():
    """A run that has saved itself ignores further signals, and so would every process that later tests start."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_runs_told_to_stop_save_themselves_at_one_step(distil, undisturbed, tmp_path, monkeypatch, signals_as_before):
    stop = partial(signal.raise_signal, signal.SIGTERM)
    with (
        after_step(4, stop, monkeypatch),
        pytest.raises(Preempted, match="SIGTERM received; saved at step 5 of 6, after which the same command"),
    ):
        distil(tmp_path, "--students", *PAIR)
    for student in PAIR:
        assert (tmp_path / f"x-{student}/checkpoints/step-5/manifest.json").is_file()
        assert not (tmp_path / f"x-{student}/student").exists()
    distil(tmp_path, "--students", *PAIR, "--resume")
    for student in PAIR:
        assert lines(tmp_path / f"x-{student}") == lines(undisturbed / f"x-{student}")
        weights = [load_file(runs / f"x-{student}/student/model.safetensors") for runs in (tmp_path, undisturbed)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_runs_too_far_apart_are_left_as_they_are(distil, tmp_path, monkeypatch):
    with killed_after_step(5, monkeypatch):
        distil(tmp_path, "--students", *PAIR)
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"x-tiny14/checkpoints/step-{step}")
    with pytest.raises(
        CheckpointError, match=r"x-tiny14 at step 0, .*x-small14 at step 4.*is 0: go on with each alone"
    ):
        distil(tmp_path, "--students", *PAIR, "--resume")
    with pytest.raises(CheckpointError, match=r"x-tiny14 has no checkpoint step-2 \(there are: none\)"):
        distil(tmp_path, "--students", *PAIR, "--resume=step-2")
    kept = sorted(folder.name for folder in (tmp_path / "x-small14/checkpoints").iterdir())
    assert kept == ["step-2", "step-4"]


def test_a_student_that_diverges_ends_alone(distil, undisturbed, tmp_path, monkeypatch):
    whole = Distillation.compare

    def spoilt(self, batches, student, taught):
        terms = whole(self, batches, student, taught)
        spoils = self.student.backbone.embed_dim == 16 and batches[0].step == 3
        return {name: term * float("nan") for name, term in terms.items()} if spoils else terms

    monkeypatch.setattr(Distillation, "compare", spoilt)
    with pytest.raises(TrainingError, match="Step 3, not finite"):
        distil(tmp_path, "--students", *PAIR)
    assert (
        not (tmp_path / "x-tiny14/student").exists() and len(lines(tmp_path / "x-tiny14")) == 4
    )  # one of them heldout
    assert (tmp_path / "x-tiny14/bad_batches/step-3.json").is_file()
    assert_same_run(tmp_path / "x-small14", undisturbed / "x-small14")


def test_settings_that_are_left_open_are_settled_once_for_all(distil, tmp_path, capsys):
    distil(tmp_path, "--students", *PAIR, "--name=auto", "--epochs=3", "--loader.batch_size=auto")
    runs = [tmp_path / f"{student}-images" for student in PAIR]
    settings = [json.loads((run / "config.json").read_text())["config"] for run in runs]
    assert [s.pop("student") for s in settings] == list(PAIR)
    assert [s.pop("name") for s in settings] == [run.name for run in runs]
    assert settings[0] == settings[1] and settings[0]["loader"]["batch_size"] == 8 and settings[0]["students"] == []
    words = " ".join(capsys.readouterr().out.split())
    assert "for 2 students together. Results go to" in words
    assert words.count("patch tokens: cosine, mean removed") == 2
    for run in runs:
        assert f"Report {run}/report.html" in words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--students", "tiny14", "small14", "--student=tiny14"), "--student and --students both say what to train"),
        (("--students", "tiny14", "small14", "tiny14"), "students names tiny14 more than once"),
        (("--students", "tiny14", "timm:test_vit", "--objective.kind=prototypes"), "use --objective.kind features"),
        (("--students", "tiny14", "small14", "--objective.kind=prototypes"), "has no heads"),
        (("--students", "tiny14", "smal14"), "There is no model `smal14`: did you mean `small14`"),
        (("--students", "tiny14", "timm:test_vot"), "did you mean test_vit"),
        (
            ("--students", "tiny14", "small14", "--init=runs/earlier/student"),
            "is one student, and students names others",
        ),
        (("--students", "tiny14", "timm:test_vit", "--crops.local_count=0"), "test_vit does not take images of 56"),
        (("--students", "tiny14", "vitb14"), "larger"),
        (("--students",), "students"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(distil, tmp_path, more, words):
    with pytest.raises(ConfigError if "heads" not in words else CheckpointError, match=words):
        distil(tmp_path / "runs", *more)
    assert not (tmp_path / "runs").exists()


def test_a_run_of_one_student_cannot_be_resumed_with_others(distil, tmp_path):
    distil(tmp_path, "--students", *PAIR, "--init=random", "--optim.steps=1")
    with pytest.raises(ConfigError, match="names the run already"):
        distill_arguments([f"--resume={tmp_path}/x-tiny14", "--students", *PAIR])
    with pytest.raises(ConfigError, match="x-tiny14 already holds a run"):
        distil(tmp_path, "--students", *PAIR)


def test_a_list_of_words_may_be_written_in_three_ways():
    for words in (["--students", "a", "b"], ["--students=a,b"], ['--students=["a", "b"]']):
        config, _ = distill_arguments(["PHOTOS", *words, "--name", "x"])
        assert config.students == ("a", "b") and config.data == "PHOTOS" and config.name == "x"
    assert [one.folder.name for one in config.each()] == ["x-a", "x-b"]


def test_a_function_distils_several(place, tmp_path):
    settings = {"crops": {"global_size": 56, "local_count": 0}, "loader": {"batch_size": 4, "workers": 0}}
    settings |= {"evaluation": {"size": 56, "heldout_count": 4, "fit_images": 8}, "init": "random"}
    settings |= {"optim": {"steps": 1, "warmup_steps": 0}, "runtime.threads": 1, "log.progress": False}
    students = dinov2_zoo.distill(
        place / "images",
        students=["tiny14", "timm:test_convnext"],
        teacher=place / "teacher",
        runs=tmp_path,
        **settings,
    )
    assert [students[0].embed_dim, type(students[0])] == [16, Dinov2Model] and not students[0].training
    assert students[1](torch.zeros(1, 3, 56, 56)).shape[0] == 1 and not students[1].training
    assert sorted(run.name for run in tmp_path.iterdir()) == ["timm-test_convnext-images", "tiny14-images"]
