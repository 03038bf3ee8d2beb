"""The evaluation from its command line: every task on small data, what stands is kept, mistakes are told at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colour_folders import colours
from cutout_folder import draw_cutouts

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import ModelConfig
from dinov2_zoo.config.evaluate import EvaluateConfig, EvaluationData
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.suite import TASKS, parse_tasks

ROOT = Path(__file__).resolve().parent.parent.parent


def test_tasks_are_parsed_in_order_and_mistakes_name_the_nearest():
    data = EvaluationData(train="x", depth="y")
    assert [task.name for task in parse_tasks("depth:lin4, knn,knn", data)] == ["depth:lin4", "knn"]
    with pytest.raises(ConfigError, match="no task `depth`: use depth:lin1 or depth:lin4 or depth:dpt"):
        parse_tasks("depth", data)
    with pytest.raises(ConfigError, match="no task `linaer`: use linear"):
        parse_tasks("linaer", data)
    with pytest.raises(ConfigError, match=r"video needs images: name them with --data\.video"):
        parse_tasks("video", data)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ConfigError, match="--model is empty"):
        EvaluateConfig(model=" ")
    with pytest.raises(ConfigError, match="--tasks is empty"):
        EvaluateConfig(model="x", tasks="")


QUICK = """
data: {{train: {root}/photos, depth: package:motorcycle, segmentation: 'composites:{root}/cutouts',
        retrieval: 'folder:{root}/photos', video: 'composites:{root}/cutouts'}}
knn: {{size: 28, k: [1, 3]}}
linear: {{size: 28, steps: 10, batch_size: 8, rates: [0.1], path: cached}}
logistic: {{size: 28, strengths: 3}}
depth: {{steps: 2, batch_size: 2, crop: [28, 28], mean_only_steps: 1, flip_test: false}}
segmentation: {{steps: 2, warmup_steps: 0, batch_size: 2, short_side: 56, crop: 56, ratios: [1.0]}}
retrieval: {{size: 28}}
video: {{short_side: 56}}
runtime: {{cpu: true, threads: 1, precision: fp32}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    colours(root / "photos", count=6)
    draw_cutouts(root / "cutouts")
    for number in range(2):
        model = Dinov2Model(ModelConfig(embed_dim=32, depth=4, num_heads=2, img_size=56))
        draw = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
        model.save_pretrained(root / f"model{number}")
    (root / "quick.yaml").write_text(QUICK.format(root=root))
    return root


def evaluate(place, *arguments):
    command = [sys.executable, str(ROOT / "recipes/evaluate.py"), "--config", str(place / "quick.yaml"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    return done.returncode, done.stdout, done.stderr


def test_every_task_in_one_go_then_what_stands_is_kept(place):
    tasks = [task for task in TASKS if task != "depth:dpt"]  # its own test; it takes a minute here
    models = f"one={place}/model0,two={place}/model1"
    code, out, err = evaluate(place, "--model", models, "--tasks", ",".join(tasks), "--out", "records")
    assert code == 0, err
    assert "one" in out and "two" in out and "IoU" in out and "J&F" in out
    for name in ("one", "two"):
        for task in tasks:
            record = json.loads((place / "records" / name / f"{task.replace(':', '-')}.json").read_text())
            assert record["headline"] in record["metrics"] and record["task"] == task
            assert record["data"]["source"] and "torch" in json.dumps(record["provenance"])
    code, again, _ = evaluate(place, "--model", models, "--tasks", "knn,video", "--out", "records")
    assert code == 0 and again.count("measured before") == 4
    assert "k-NN, k = 3" in again and "leave-one-out" in again
    one = ("--model", f"one={place}/model0", "--tasks", "knn", "--out", "records")
    code, anew, _ = evaluate(place, *one, "--overwrite", "true")
    assert code == 0 and "measured before" not in anew
    other = ("--knn.k", "[1]")
    code, changed, _ = evaluate(place, *one, *other)
    assert code == 0 and "measured before" not in changed


def test_a_wrong_path_is_told_before_anything_runs(place):
    command = ("--model", str(place / "model0"), "--tasks", "knn,depth:lin1", "--data.depth", "nyu:/nowhere")
    code, out, err = evaluate(place, *command)
    assert code == 2 and "nyu_train.txt" in err and "knn" not in out
    assert "Traceback" not in err
