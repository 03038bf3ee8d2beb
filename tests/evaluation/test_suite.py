"""The evaluation from its command line: every task on small data, what stands is kept, mistakes are told at once."""

import json

import pytest
from evaluation_runs import evaluate

from dinov2_zoo.config.evaluate import EvaluateConfig, EvaluationData
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.suite import TASKS, parse_tasks


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
