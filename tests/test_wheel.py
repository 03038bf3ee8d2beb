"""The wheel alone, in a fresh environment and a folder of photos: distil, stop, resume, verify in three libraries."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data as photos

from dinov2_zoo import Dinov2Model
from dinov2_zoo.cli import recipe_files
from dinov2_zoo.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
# All but the small images is automatic.
SETTINGS = [
    "--time",
    "1m",
    "--student",
    "vitti14_reg4",
    "--crops.global_size",
    "56",
    "--runtime.cpu",
    "true",
    "--runtime.threads",
    "1",
    "--name",
    "own",
]


def shipped(folder):
    """Files of the package that a wheel must hold, by the path that they have in it."""
    wanted = ("*.py", "*.yaml", "*.sbatch", "*.jinja", "py.typed")
    inside = [path for pattern in wanted for path in (folder / "dinov2_zoo").rglob(pattern)]
    names = {path.relative_to(folder).as_posix() for path in inside if "recipes" not in path.relative_to(folder).parts}
    recipes = {path for pattern in wanted for path in (folder / "recipes").rglob(pattern)}
    return names | {f"dinov2_zoo/{path.relative_to(folder).as_posix()}" for path in recipes}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing of an earlier build gets in."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("dinov2_zoo", "recipes"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            symlinks=True,
            ignore=lambda place, names: {n for n in names if (Path(place) / n).is_symlink() or n == "__pycache__"},
        )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder / "dist"), str(folder)], check=True, cwd=folder)
    (file,) = (folder / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment's folder of programs: the wheel, and what is installed here besides this project."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but .pth files inside it (editable installs) are not read.
    (packages / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with nothing but photos and a teacher."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = Image.fromarray(getattr(photos, name)())
        for i in range(5):
            photo.crop((40 * i, 20 * i, 40 * i + 200, 20 * i + 180)).save(folder / f"photos/{name}-{i}.jpg")
    torch.manual_seed(0)
    Dinov2Model(ModelConfig(256, 12, num_heads=4, img_size=56, layer_scale=1.0)).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def zoo(environment, work):
    """Starts a program of the environment in the working folder."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables = outside | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}

    def start(program, *words):
        command = [str(environment / program), *words]
        return subprocess.Popen(command, cwd=work, env=variables, stdout=-1, stderr=subprocess.STDOUT, text=True)

    return start


def finished(process, code=0):
    """What a program prints; it ends with this code."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed[-4000:]
    return printed


@pytest.fixture(scope="module")
def run(zoo, work):
    """A run that was stopped after its first step, and resumed by its folder alone."""
    folder = work / "runs/own"
    process = zoo("dinov2-zoo", "distill", "photos", "--teacher", "teacher", *SETTINGS)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "stopped: " in finished(process, 75)
    assert not (folder / "student").exists()
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        "--num_processes=1",
        "--num_machines=1",
        "--dynamo_backend=no",
    ]
    launch += ["--mixed_precision=no", "-m", "dinov2_zoo.recipes.distill"]
    finished(zoo("python", *launch, "--resume", "runs/own"))
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert shipped(ROOT) <= set(archive.namelist())
        assert not [name for name in archive.namelist() if name.startswith(("recipes/", "tests/"))]


def test_every_word_answers(zoo):
    found = finished(zoo("python", "-c", "import dinov2_zoo.recipes as r; print(r.__file__)")).strip()
    assert Path(found).parent.name == "recipes" and not Path(found).is_relative_to(ROOT)
    assert finished(zoo("dinov2-zoo", "--version")).startswith("dinov2-zoo ")
    for word in recipe_files():
        assert f"usage: dinov2-zoo {word}" in finished(zoo("dinov2-zoo", word, "--help"))


def test_a_run_is_stopped_and_resumed_by_its_folder_alone(run, work):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    settled = json.loads((run / "config.json").read_text())["config"]
    assert steps == sorted(set(steps)) and steps[-1] == settled["optim"]["steps"] > 1
    assert settled["evaluation"]["heldout_count"] == 2 and settled["loader"]["batch_size"] == 18
    assert [path.name for path in (work / "runs").iterdir()] == ["own"]  # and no other, such as the demo's
    assert (run / "report.html").is_file()


def test_the_student_is_verified_and_loads_in_three_libraries(run, zoo):
    printed = finished(zoo("dinov2-zoo", "verify", "runs/own/student"))
    rows = [line.split() for line in printed.splitlines()]
    passed = {row[0].rstrip(",") for row in rows if "ok" in row}
    assert {"timm", "transformers"} <= passed and "WRONG" not in printed, printed


def test_a_folder_is_embedded_and_searched(run, zoo, work):
    finished(zoo("dinov2-zoo", "embed", "photos", "features.parquet", "--model", "runs/own/student"))
    assert (work / "features.parquet").is_file()
    assert "coffee-2.jpg" in finished(zoo("dinov2-zoo", "search", "features.parquet", "photos/coffee-2.jpg"))
