"""The distillation recipe from its command line to a student that three libraries load."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos
from stopped_training import killed_after_step

import dinov2_zoo
from dinov2_zoo import Dinov2Model
from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, ModelConfig
from dinov2_zoo.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--crops.global_size=56 --crops.local_count=0 --loader.batch_size=4 --loader.workers=0 --evaluation.size=56 "
    "--evaluation.heldout_count=4 --evaluation.fit_images=8 --init_images=8 --student=vitti14_reg4 --optim.steps=4 "
    "--optim.warmup_steps=1 --runtime.threads=1 --log.every=1 --log.progress=false --evaluation.labelled=null "
    "--checkpoint.every=2 --runtime.precision=fp32 --finish.share=0.5 --finish.sizes=[56,84]"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Sixteen cuttings of a photo, one of them damaged, and a small teacher of the student's patch and head width."""
    folder = tmp_path_factory.mktemp("distil")
    (folder / "images/nested").mkdir(parents=True)
    photo = Image.fromarray(photos.astronaut())
    for i in range(16):
        photo.crop((30 * i, 60, 30 * i + 62, 60 + 70)).save(folder / f"images/nested/{i}.png")
    torch.manual_seed(0)
    shape = ModelConfig(embed_dim=256, depth=12, num_heads=4, img_size=56, layer_scale=1.0)
    Dinov2Model(shape).save_pretrained(folder / "teacher")
    return folder


def options(place, runs, name, *more):
    fixed = [
        f"--config={ROOT}/recipes/configs/demo.yaml",
        f"--data={place}/images",
        f"--teacher={place}/teacher",
        f"--runs={runs}",
        f"--name={name}",
    ]
    return [*fixed[:1], *OPTIONS.split(), *fixed[1:], *more]


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """One run by `accelerate launch` in a process of its own: its folder, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "recipes/configs/accelerate/single_gpu.yaml"), str(ROOT / "recipes/distill.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    arguments = options(place, runs, "one", "--log.trackers=[tensorboard]")
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return runs / "one", done.stdout


def test_the_run_folder_holds_what_is_promised(run):
    folder, printed = run
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["student"] == "vitti14_reg4" and record["provenance"]["torch"] == version("torch")
    assert {"git", "timm", "machine"} <= record["provenance"].keys()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-2", "step-4"]
    assert (folder / "features.jpg").is_file() and list(folder.rglob("events.out.tfevents*"))
    page = (folder / "report.html").read_text()
    assert "data:image/jpeg" in page and "http://" not in page and 'src="http' not in page
    assert not list(folder.rglob("*.part")) and not list(folder.rglob(".*.part"))
    assert "patch tokens: cosine, mean removed" in printed and str(folder / "report.html") in printed


def test_the_fitted_start_is_nearer_to_the_teacher_than_random_weights(run):
    measured = json.loads((run[0] / "measured.json").read_text())
    assert list(measured) == ["random", "start", "trained"]
    assert measured["start"]["patch_cosine_centred"] > measured["random"]["patch_cosine_centred"] + 0.05


def score(measured):
    return sum(measured[name] for name in ("class_cosine_centred", "patch_cosine_centred", "patch_neighbours")) / 3


def test_the_released_student_is_not_worse_than_its_start_on_held_out_images(run, launch, place, tmp_path, capsys):
    measured = json.loads((run[0] / "measured.json").read_text())
    assert score(measured["trained"]) >= score(measured["start"])
    launch(options(place, tmp_path, "wild", "--relative_lr=5", "--optim.warmup_steps=0", "--finish.share=0"))
    measured = json.loads((tmp_path / "wild/measured.json").read_text())
    assert measured["trained"] == measured["start"]
    said = "The student is its start: no average was better on images kept out."
    assert said in " ".join(capsys.readouterr().out.split()) and said in (tmp_path / "wild/report.html").read_text()


@pytest.mark.parametrize("size", [(56, 56), (70, 112)])
def test_three_libraries_load_the_student_with_the_same_features(run, size):
    folder, pixels = run[0] / "student", torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = Dinov2Model.from_pretrained(folder).forward_features(pixels)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features(pixels)
        third = transformers.AutoModel.from_pretrained(folder)(pixels).last_hidden_state
    for tokens in (theirs, third):
        torch.testing.assert_close(ours["x_norm_clstoken"], tokens[:, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours["x_norm_patchtokens"], tokens[:, 5:], rtol=0, atol=1e-4)
    projector = load_file(folder / "projector.safetensors")
    assert projector["patches.weight"].shape == (256, 192)


@pytest.fixture
def launch():
    from dinov2_zoo.recipes import distill

    return lambda arguments, resume=None: distill.launch(parse(DistillConfig, arguments)[0], resume=resume)


def test_an_interrupted_run_goes_on_bit_for_bit(launch, place, run, tmp_path, monkeypatch):
    sides = []

    def seen(batches):
        for batch in batches:
            sides.append(batch.global_crops.shape[-1])
            yield batch

    # One step after its checkpoint, and after the finishing stage's first.
    with killed_after_step(3, monkeypatch, seen=seen):
        launch(options(place, tmp_path, "one"))
    assert sides == [56, 56, 84] and not (tmp_path / "one/student").exists()
    launch(options(place, tmp_path, "one"), resume="auto")
    for file in ("model.safetensors", "projector.safetensors"):
        expected, got = load_file(run[0] / "student" / file), load_file(tmp_path / "one/student" / file)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), file
    steps = [json.loads(line)["step"] for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_timm_network_is_distilled_by_features_and_loads_in_timm(launch, place, tmp_path):
    launch(
        options(place, tmp_path, "timm", "--student=timm:convnext_atto", "--optim.steps=1", "--crops.global_size=56")
    )
    model = timm.create_model(f"local-dir:{tmp_path}/timm/student", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 56, 56)).shape == (1, 320)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 56, 56)


def test_a_damaged_image_is_listed_and_too_many_end_the_run(launch, place, tmp_path):
    from dinov2_zoo.errors import DataError

    images = tmp_path / "images"
    images.mkdir()
    for path in (place / "images/nested").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "damaged.png").write_bytes(b"\x89PNG nothing more")
    more = (f"--data={images}", "--evaluation.heldout_count=0", "--optim.steps=5", "--init=random")
    launch([*options(place, tmp_path, "some", *more), "--loader.max_bad_share=0.1"])
    skipped = [json.loads(line) for line in (tmp_path / "some/skipped.jsonl").read_text().splitlines()]
    assert {Path(line["name"]).name for line in skipped} == {"damaged.png"}
    with pytest.raises(DataError, match=r"damaged\.png"):
        launch(options(place, tmp_path, "strict", *more))


def test_five_percent_of_images_of_eight_troublesome_kinds(launch, place, tmp_path):
    """Four kinds are merely unusual and are used; four are damaged, and stop the run or are listed, as configured."""
    from dinov2_zoo.errors import DataError

    images = tmp_path / "images"
    images.mkdir()
    photo = Image.fromarray(photos.astronaut())
    for i in range(152):
        photo.crop((i, i, i + 64, i + 64)).save(images / f"{i:03}.jpg")
    small = photo.resize((64, 64))
    small.convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257).save(images / "16-bit.png")
    small.save(images / "animated.gif", save_all=True, append_images=[small.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(images / "rotated.jpg", exif=exif)
    whole = (images / "000.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "extension.jpg").write_text("<html>404</html>")
    Image.new("1", (8, 8)).save(images / "bomb.bmp")
    header = bytearray((images / "bomb.bmp").read_bytes())
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    (images / "bomb.bmp").write_bytes(bytes(header))

    more = (f"--data={images}", "--evaluation.heldout_count=0", "--init=random", "--optim.steps=12")
    more += ("--loader.batch_size=16", "--evaluation.fit_images=16", "--checkpoint.every=0", "--loader.workers=1")
    launch([*options(place, tmp_path, "lenient", *more), "--loader.max_bad_share=0.05"])
    skipped = [json.loads(line) for line in (tmp_path / "lenient/skipped.jsonl").read_text().splitlines()]
    damaged = {"truncated.jpg", "empty.jpg", "extension.jpg", "bomb.bmp"}
    assert {Path(line["name"]).name for line in skipped} == damaged and all(line["reason"] for line in skipped)
    with pytest.raises(DataError, match=r"loader\.max_bad_share"):
        launch([*options(place, tmp_path, "strict", *more), "--loader.max_bad_share=0.01"])


def test_a_function_distils_and_gives_the_student(place, tmp_path):
    settings = {"crops": {"global_size": 56, "local_count": 0}, "loader": {"batch_size": 4, "workers": 0}}
    settings |= {"evaluation": {"size": 56, "heldout_count": 4, "fit_images": 8}, "init": "random"}
    settings |= {"optim": {"steps": 1, "warmup_steps": 0}, "runtime.threads": 1, "log.progress": False}
    places = {"teacher": place / "teacher", "runs": tmp_path, "name": "called"}
    student = dinov2_zoo.distill(place / "images", student="vitti14", **places, **settings)
    assert isinstance(student, Dinov2Model) and student.embed_dim == 192 and not student.training
    recorded = json.loads((tmp_path / "called/config.json").read_text())["config"]
    assert (recorded["data"], recorded["optim"]["steps"]) == (str(place / "images"), 1)
    with pytest.raises(ConfigError, match=r"optim\.base_lr"):
        dinov2_zoo.distill(place / "images", lr=1)
