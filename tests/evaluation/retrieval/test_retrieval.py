"""Retrieval: precision by hand, junk taken out, annotations read without running what a pickle names."""

import json
import pickle

import numpy as np
import pytest
import torch
from colour_folders import colours
from PIL import Image
from sklearn.metrics import average_precision_score
from stand_ins import tiny_encoder, together, workspace

from dinov2_zoo.config.retrieval import RetrievalConfig
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.retrieval.protocol import (
    average_precision,
    evaluate_retrieval,
    retrieval_features,
    retrieval_metrics,
)
from dinov2_zoo.evaluation.retrieval.readers import Truth, open_retrieval


def test_precision_by_hand_of_six_images():
    # Right at ranks 0, 2, 5: before and after each, 1 and 1; 1/2 and 2/3; 2/5 and 3/6.
    expected = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3
    assert average_precision([0, 2, 5]) == pytest.approx(expected)
    assert average_precision([5, 0, 2]) == pytest.approx(expected)


def test_junk_is_taken_out_of_the_ranking():
    assert average_precision([1, 4], junk=[0, 3]) == average_precision([0, 2])
    assert average_precision([0], junk=[1, 2]) == 1.0


def test_the_trapezoid_lies_below_scikit_learns_steps_by_what_it_must():
    draw = np.random.default_rng(0)
    scores, right = draw.normal(size=50), draw.random(50) < 0.2
    ranks = np.argsort(np.argsort(-scores))[right]
    steps = average_precision_score(right, scores)
    # The step takes the precision after each right image, the trapezoid its mean with the one before.
    before = [1.0 if rank == 0 else found / rank for found, rank in enumerate(sorted(ranks))]
    assert average_precision(ranks.tolist()) == pytest.approx((steps + np.mean(before)) / 2)


def test_metrics_of_rankings_by_hand():
    gallery = torch.eye(4)
    queries = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.0, 0.1, 0.5, 0.9]])  # rankings 0123 and 3210
    truths = [Truth([0, 1]), Truth([0], junk=[3])]
    metrics = retrieval_metrics(queries, gallery, truths, chunk=1)
    assert metrics["map"] == pytest.approx((1 + average_precision([2])) / 2)
    assert metrics["mp@1"] == 0.5 and metrics["queries"] == 2
    # The second query's only right image is third once junk is out: one of its first three.
    assert metrics["mp@5"] == pytest.approx((2 / 2 + 1 / 3) / 2)


def test_queries_without_a_right_image_are_left_out():
    metrics = retrieval_metrics(torch.eye(2), torch.eye(2), [Truth([0]), Truth([], [1])])
    assert metrics["queries"] == 1 and metrics["map"] == 1
    with pytest.raises(DataError, match="No query has a right image"):
        retrieval_metrics(torch.eye(2), torch.eye(2), [Truth([]), Truth([])])


def photo(path, seed, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


def revisited(root, kind="pkl", box=(0, 0, 30, 30)):
    for number in range(5):
        photo(root / "jpg" / f"all_{number}.jpg", number)
    photo(root / "jpg" / "query.jpg", 0)
    truth = {"bbx": list(box), "easy": np.array([0]), "hard": np.array([1]), "junk": np.array([2])}
    content = {"imlist": [f"all_{n}" for n in range(5)], "qimlist": ["query"], "gnd": [truth]}
    if kind == "pkl":
        (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    else:
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in truth.items()}
        (root / "gnd_roxford5k.json").write_text(json.dumps({**content, "gnd": [plain]}))
    return root


@pytest.mark.parametrize("kind", ["pkl", "json"])
def test_revisited_tasks_treat_hard_and_easy_as_they_should(tmp_path, kind):
    data = open_retrieval(f"roxford:{revisited(tmp_path, kind)}")
    assert data.tasks["easy"][0] == Truth([0], [2, 1])
    assert data.tasks["medium"][0] == Truth([0, 1], [2])
    assert data.tasks["hard"][0] == Truth([1], [2, 0])
    config = RetrievalConfig(size=56, crop_queries=False)
    result = evaluate_retrieval(tiny_encoder(), data, config, workspace(tmp_path / "f"))
    assert result.headline == "map_medium" and result.metrics["map_easy"] == 1.0  # the query is image 0


def test_queries_are_cut_to_their_box_if_asked(tmp_path):
    data = open_retrieval(f"roxford:{revisited(tmp_path)}")
    encoder, config = tiny_encoder(), RetrievalConfig(size=56)
    cut = retrieval_features(encoder, data.queries, config, workspace(tmp_path / "f"), boxes=data.boxes)
    whole = retrieval_features(encoder, data.queries, config, workspace(tmp_path / "f"))
    assert not torch.allclose(cut, whole, atol=1e-3)
    photo(tmp_path / "jpg" / "query.jpg", 0)
    with Image.open(tmp_path / "jpg" / "query.jpg") as image:
        image.crop((0, 0, 30, 30)).save(tmp_path / "part.png")
    (tmp_path / "one").mkdir()
    (tmp_path / "part.png").rename(tmp_path / "one" / "part.png")
    alone = retrieval_features(encoder, open_source(str(tmp_path / "one")), config, workspace(tmp_path / "f"))
    assert torch.allclose(cut, alone, atol=1e-3)  # one of them was stored in half precision


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    revisited(tmp_path)
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({"imlist": Evil()}))
    with pytest.raises(DataError, match=r"it calls builtins\.print, which is not allowed"):
        open_retrieval(f"roxford:{tmp_path}")
    assert capsys.readouterr().out == ""


def test_amstertime_pairs_by_name(tmp_path):
    for number in range(3):
        photo(tmp_path / "old" / f"{number}.png", number)
        photo(tmp_path / "new" / f"{number}.jpg", number)
    data = open_retrieval(f"amstertime:{tmp_path}")
    result = evaluate_retrieval(tiny_encoder(), data, RetrievalConfig(size=56), workspace(tmp_path / "f"))
    assert result.metrics["map"] == 1.0 and result.data.images == {"gallery": 3, "queries": 3}
    (tmp_path / "new" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2\.png has no image of this name"):
        open_retrieval(f"amstertime:{tmp_path}")


def test_met_queries_of_unknown_exhibits_are_left_out(tmp_path):
    for folder in ("gallery/7", "gallery/8", "queries/7", "queries/99"):
        photo(tmp_path / folder / "a.png", len(folder))
    data = open_retrieval(f"met:{tmp_path}")
    result = evaluate_retrieval(tiny_encoder(), data, RetrievalConfig(size=28), workspace(tmp_path / "f"))
    assert result.metrics["queries"] == 1


def test_every_image_of_a_folder_asks_for_the_others_of_its_class(tmp_path):
    colours(tmp_path, count=4)
    data = open_retrieval(f"folder:{tmp_path}")
    assert data.tasks[""][0] == Truth([1, 2, 3], [0])
    for resize in ("crop", "long_side"):
        config = RetrievalConfig(size=28, resize=resize)
        result = evaluate_retrieval(tiny_encoder(), data, config, workspace(tmp_path / "f"))
        assert result.metrics["map"] == 1.0  # plain colours
        for found in together(
            lambda p, config=config: evaluate_retrieval(tiny_encoder(), data, config, workspace(tmp_path / "f", p))
        ):
            assert found.metrics == pytest.approx(result.metrics)


def test_scales_are_averaged_on_the_whole_image(tmp_path):
    photo(tmp_path / "a" / "1.png", 1, (90, 50))
    photo(tmp_path / "b" / "2.png", 2, (50, 90))
    source, encoder = open_source(str(tmp_path)), tiny_encoder()
    one, half, both = (
        retrieval_features(encoder, source, RetrievalConfig(size=56, scales=scales), workspace(tmp_path / "f"))
        for scales in ((1.0,), (0.5,), (1.0, 0.5))
    )
    assert torch.allclose(both, torch.nn.functional.normalize(one + half, dim=1), atol=1e-3)
    assert torch.allclose(both.norm(dim=1), torch.ones(2))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*gnd_roxford5k\.pkl"):
        open_retrieval(f"roxford:{tmp_path}")
    revisited(tmp_path)
    (tmp_path / "jpg" / "query.jpg").unlink()
    with pytest.raises(DataError, match=r"There is no .*query\.jpg"):
        open_retrieval(f"roxford:{tmp_path}")
    with pytest.raises(DataError, match="There is no retrieval set 'x:/y'"):
        open_retrieval("x:/y")
    (tmp_path / "broken").mkdir()
    for name in ("a", "b"):
        photo(tmp_path / "broken" / name / "1.png", 1)
    with pytest.raises(DataError, match=r"No query of folder:.* has a right image .*: give two images of a thing"):
        open_retrieval(f"folder:{tmp_path / 'broken'}")
    photo(tmp_path / "broken" / "a" / "2.png", 2)
    (tmp_path / "broken" / "b" / "1.png").write_bytes(b"no image")
    data = open_retrieval(f"folder:{tmp_path / 'broken'}")
    with pytest.raises(DataError, match=r"b/1\.png"):
        evaluate_retrieval(tiny_encoder(), data, RetrievalConfig(size=28), workspace(tmp_path / "f"))
