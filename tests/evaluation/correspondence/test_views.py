"""Views: tokens that know the place in the photo find each other, random ones by chance; bad photos are told."""

import pytest
import torch
from PIL import Image
from stand_ins import ColourEncoder, tiny_encoder, together, workspace

from dinov2_zoo.config.correspondence import CorrespondenceConfig, ViewsConfig
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.correspondence import matching
from dinov2_zoo.evaluation.correspondence.geometry import UNIT, between, draw_quads, homography, patch_centres, transfer
from dinov2_zoo.evaluation.correspondence.matching import features_at, nearest_patches, ratio_matches
from dinov2_zoo.evaluation.correspondence.protocol import evaluate_correspondence, open_correspondence
from dinov2_zoo.evaluation.correspondence.view_pairs import view_batches
from dinov2_zoo.evaluation.correspondence.views import view_correspondence
from dinov2_zoo.models.tokens import Tokens

WAVES = torch.randn(2, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tokens(places, pace=12.0):
    """Tokens whose cosine falls with the distance of places."""
    waves = pace * places.double() @ WAVES
    patches = torch.cat([waves.sin(), waves.cos()], -1).float()
    return Tokens(patches.mean(-2), patches)


def pairs(count, config=None, sides=(10, 10)):
    """Tokens of views of a photo that know where in the photo they are, and their geometry."""
    quads = [
        draw_quads(100, 100, config or ViewsConfig(), torch.Generator().manual_seed(seed)) for seed in range(count)
    ]
    views = []
    for number, side in enumerate(sides):
        maps = torch.stack([homography(UNIT, quad[number]) for quad in quads])
        views.append(tokens(transfer(patch_centres(side).double().expand(count, -1, 2), maps) / 100))
    return *views, torch.stack([between(*quad) for quad in quads])


@pytest.mark.parametrize("sides", [(10, 10), (12, 9)])
def test_tokens_that_know_the_place_in_the_photo_are_all_found(sides):
    first, second, geometry = pairs(8, ViewsConfig(rotation=180, flip=0.5), sides)
    means = view_correspondence(first, second, geometry).means()
    assert means["recall"] == 1 and means["pck"] > 0.99 and means["exact"] > 0.8
    assert means["chance"] < 0.1 and means["same_place"] < 0.5


def test_random_tokens_find_their_places_by_chance():
    draw = torch.Generator().manual_seed(0)
    _, _, geometry = pairs(60)
    first, second = (Tokens(torch.empty(60, 8), torch.randn(60, 100, 8, generator=draw)) for _ in range(2))
    means = view_correspondence(first, second, geometry).means()
    assert means["recall"] == pytest.approx(means["chance"], abs=0.01) and 0.02 < means["chance"] < 0.04
    assert means["exact"] == pytest.approx(0.01, abs=0.006)


def test_tokens_that_know_the_place_in_the_view_only_are_what_same_place_says():
    _, _, geometry = pairs(20)
    own = tokens(patch_centres(10).expand(20, -1, 2))
    means = view_correspondence(own, own, geometry).means()
    assert means["recall"] == pytest.approx(means["same_place"]) and means["recall"] < 0.5


def test_an_exact_flip_and_its_forgotten_flip():
    flip = between(UNIT, UNIT[[1, 0, 3, 2]])[None]
    first = tokens(patch_centres(9)[None])
    second = Tokens(first.class_token, first.patches.unflatten(1, (9, 9)).flip(2).flatten(1, 2))
    right = view_correspondence(first, second, flip).means()
    assert right["recall"] == right["pck"] == right["exact"] == 1
    wrong = view_correspondence(first, first, flip).means()
    assert wrong["exact"] == pytest.approx(1 / 9) and wrong["recall"] == pytest.approx(1 / 9)  # the middle column


def test_reach_is_a_tenth_of_the_view_and_recall_a_patch():
    still, places = torch.eye(3, dtype=torch.float64)[None], patch_centres(30)[None]
    for off, recall, pck in ((0, 1, 1), (2, 0, 1), (4, 0, 0)):  # patches of thirty, to the right
        moved = tokens(places + torch.tensor([off / 30, 0]))
        means = view_correspondence(moved, tokens(places), still).means()
        # At the right border there is nothing further right to be found: a few columns match what is near.
        assert means["recall"] == pytest.approx(recall, abs=0.1) and means["pck"] == pytest.approx(pck, abs=0.15)


def test_pairs_without_a_common_patch_do_not_count():
    first, second, geometry = pairs(2)
    away = torch.eye(3, dtype=torch.float64)
    away[0, 2] = 5
    matches = view_correspondence(first, second, torch.stack([geometry[0], away]))
    assert matches.recall.isnan().tolist() == [False, True] and matches.means()["recall"] == 1


def test_parts_change_nothing_and_odd_grids_are_refused(monkeypatch):
    first, second, geometry = pairs(3)
    whole = view_correspondence(first, second, geometry).means()
    monkeypatch.setattr(matching, "PRODUCTS", 700)  # two rows at a time
    assert view_correspondence(first, second, geometry).means() == pytest.approx(whole)
    with pytest.raises(ConfigError, match="A grid of 99 patches is not square"):
        view_correspondence(Tokens(first.class_token, first.patches[:, 1:]), second, geometry)


def test_nearest_patches_are_those_of_plain_loops():
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 4, generator=draw), torch.randn(2, 7, 4, generator=draw)
    found = nearest_patches(first, second)
    for image in range(2):
        for patch in range(5):
            cosine = torch.cosine_similarity(first[image, patch][None], second[image])
            assert found[image, patch] == cosine.argmax()


def test_features_between_patches_are_interpolated():
    grid = torch.nn.functional.normalize(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)), dim=0)
    centres = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    assert torch.allclose(features_at(grid, centres), grid.flatten(1).T, atol=1e-5)
    middle = features_at(grid, torch.tensor([[0.25, 0.5 / 3]]))
    expected = torch.nn.functional.normalize(grid[:, 0, 0] + grid[:, 0, 1], dim=0)
    assert torch.allclose(middle[0], expected, atol=1e-5)
    assert torch.allclose(features_at(grid, torch.zeros(1, 2))[0], grid[:, 0, 0], atol=1e-5)


def test_the_ratio_test_keeps_the_most_distinct(monkeypatch):
    monkeypatch.setattr(matching, "QUERIES", 2)
    second = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.05, 1, 0], [0, 0, 1]]), dim=1)
    first = torch.nn.functional.normalize(torch.tensor([[0, 1.0, 0.1], [1, 0.2, 0], [0, 0.1, 1]]), dim=1)
    one, two = ratio_matches(first, second, 2)  # the first has two that are equally near
    assert dict(zip(one.tolist(), two.tolist(), strict=True)) == {1: 0, 2: 3} and one.tolist() == [2, 1]
    assert len(ratio_matches(first, second, 9)[0]) == 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos whose colour says the place: no two patches are alike."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(3):
        width, height = (150, 120) if number else (120, 150)
        x, y = torch.linspace(0, 255, width).expand(height, -1), torch.linspace(0, 255, height)[:, None]
        pixels = torch.stack([x, y.expand(-1, width), torch.full((height, width), 90.0 * number)], 2)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / f"{number}.png")
    return root


QUICK = CorrespondenceConfig(size=112, views=ViewsConfig(pairs=3, colour=False), workers=0)


def test_colours_find_each_other_in_real_views(photos, tmp_path):
    data = open_correspondence(f"views:{photos}")
    found = evaluate_correspondence(ColourEncoder(), data, QUICK, workspace(tmp_path))
    assert found.headline == "recall" and found.metrics["pairs"] == 9 and found.protocol["size"] == 112
    assert found.metrics["recall"] > 0.95
    noise = evaluate_correspondence(ColourEncoder(noise=True), data, QUICK, workspace(tmp_path)).metrics
    assert noise["recall"] == pytest.approx(noise["chance"], abs=0.06)
    other = CorrespondenceConfig(size=112, views=ViewsConfig(pairs=3, colour=False, seed=1), workers=0)
    assert evaluate_correspondence(ColourEncoder(), data, other, workspace(tmp_path)).metrics != found.metrics


def test_two_processes_and_workers_find_what_one_does(photos, tmp_path):
    data = open_correspondence(f"views:{photos}")
    alone = evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path)).metrics
    for found in together(lambda p: evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path, p))):
        assert found.metrics == pytest.approx(alone)
    source = open_source(str(photos))
    (one, two, three) = next(view_batches(source, QUICK.views, size=28)).geometry[:3]
    assert not torch.equal(one, two) and not torch.equal(two, three)
    for workers in (0, 1):
        batches = list(view_batches(source, QUICK.views, size=28, batch_size=3, workers=workers))
        assert [batch.photos for batch in batches] == [[0] * 3, [1] * 3, [2] * 3]
        again = next(view_batches(source, QUICK.views, size=28, indices=[1]))
        assert torch.equal(again.second, batches[1].second) and torch.equal(again.geometry, batches[1].geometry)


def test_photos_that_cannot_be_used_are_left_out_and_told(photos, tmp_path):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"nothing")
    Image.new("RGB", (8, 300)).save(tmp_path / "thin.png")
    found = evaluate_correspondence(
        tiny_encoder(), open_correspondence(f"views:{tmp_path}"), QUICK, workspace(tmp_path)
    )
    assert found.metrics["pairs"] == 9
    assert "broken.png" in found.notes[1] and "thin.png: Its short side has less than 32 pixels" in found.notes[1]
    for path in tmp_path.glob("[0-9].png"):
        path.unlink()
    with pytest.raises(DataError, match=r"None of 2 photos of views:.* can be used"):
        evaluate_correspondence(tiny_encoder(), open_correspondence(f"views:{tmp_path}"), QUICK, workspace(tmp_path))


def test_settings_that_cannot_work(photos, tmp_path):
    data = open_correspondence(f"views:{photos}")
    small = CorrespondenceConfig(size=9, workers=0)
    with pytest.raises(ConfigError, match=r"correspondence\.size is 9, less than the model's patch of 14"):
        evaluate_correspondence(tiny_encoder(), data, small, workspace(tmp_path))
    for wrong in ({"scale": (0.5, 1.5)}, {"scale": (0.9, 0.5)}, {"perspective": 0.25}, {"flip": 2}, {"pairs": 0}):
        with pytest.raises(ConfigError, match=r"correspondence\.views\."):
            ViewsConfig(**wrong)
    for text in ("views:", "x:/y", str(photos)):
        with pytest.raises(DataError, match=r"There are no pairs .*: use views:SOURCE, spair:/path or navi:/path"):
            open_correspondence(text)
