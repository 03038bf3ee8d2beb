"""In-context segmentation: labels of patches by hand, the vote by brute force, colours that tell classes apart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stand_ins import ColourEncoder, tiny_encoder, together, workspace

from dinov2_zoo.config.in_context import InContextConfig
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.in_context import memory as memories
from dinov2_zoo.evaluation.in_context.memory import Memory, chosen_patches, patch_counts
from dinov2_zoo.evaluation.in_context.protocol import evaluate_in_context, remember
from dinov2_zoo.evaluation.segmentation.metrics import IGNORED
from dinov2_zoo.evaluation.segmentation.readers import open_segmentation

QUICK = InContextConfig(size=56, memory=1000, neighbours=5, workers=0)
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def test_pixels_count_for_the_patch_that_holds_their_centre():
    mask = torch.tensor([[0, 0, 1, 1, 2, IGNORED], [0, 1, 1, 1, IGNORED, IGNORED]])
    assert patch_counts(mask, (1, 3), 3).tolist() == [[3, 1, 0], [0, 4, 0], [0, 0, 1]]
    assert patch_counts(mask, (2, 1), 3).tolist() == [[2, 2, 1], [1, 3, 0]]
    # Three pixels on two patches: the centre of the middle one lies on the border, and counts for the second.
    assert patch_counts(torch.tensor([[0], [1], [2]]), (2, 1), 3).tolist() == [[1, 0, 0], [0, 1, 1]]
    # A mask coarser than the patches leaves some without a pixel.
    assert patch_counts(torch.tensor([[1]]), (3, 1), 2).sum(1).tolist() == [0, 1, 0]


def test_patches_of_rare_classes_are_likelier_to_be_kept_and_those_without_a_label_never_are():
    counts = torch.zeros(100, 3, dtype=torch.int64)
    counts[:80, 0], counts[80:90, 1] = 196, 196  # ten of the rare class, ten without any
    kept = [chosen_patches(counts, 10, torch.Generator().manual_seed(seed)) for seed in range(50)]
    rare = sum((part >= 80).sum().item() for part in kept) / 500
    assert rare > 0.5  # an even draw would give 10 of 90
    assert all(part.max() < 90 and len(part.unique()) == 10 and part.equal(part.sort().values) for part in kept)
    assert len(chosen_patches(counts, 1000, torch.Generator())) == 90
    assert torch.equal(kept[3], chosen_patches(counts, 10, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("queries", [3, 4096])
def test_the_vote_is_that_of_brute_force(monkeypatch, queries):
    monkeypatch.setattr(memories, "QUERIES", queries)
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(50, 8, generator=draw), dim=1)
    labels = torch.rand(50, 4, generator=draw).softmax(1)
    asked = F.normalize(torch.randn(7, 8, generator=draw), dim=1)
    voted, among = Memory(features, labels).votes(asked, neighbours=6, temperature=0.1)
    for query, vote, share in zip(asked, voted, among, strict=True):
        cosine, where = (features @ query).sort(descending=True)
        weights = (cosine[:6] / 0.1).softmax(0)
        assert torch.allclose(vote, (weights[:, None] * labels[where[:6]]).sum(0), atol=1e-5)
        assert torch.allclose(share, F.one_hot(labels[where[:6]].argmax(1), 4).float().mean(0), atol=1e-6)
    few, _ = Memory(features[:2], labels[:2]).votes(asked, neighbours=30, temperature=1e6)
    assert torch.allclose(few, labels[:2].mean(0).expand(7, -1), atol=1e-4)


def stripes(root, order, size=(56, 56), numbers=(0, 1, 2)):
    """Photos of three vertical stripes, each in its class's colour, give or take some noise; masks that say so."""
    for part in ("train", "test"):
        for number, colours in enumerate(order):
            draw = np.random.default_rng(number)
            columns = np.repeat(np.array(colours), 2)[np.arange(size[0]) * (2 * len(colours)) // size[0]]
            mask = np.broadcast_to(columns, size[::-1])
            photo = np.array(COLOURS)[mask] + draw.integers(-20, 20, (*mask.shape, 3))
            for folder, pixels in (("images", photo), ("masks", np.array(numbers)[mask])):
                path = root / part / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return open_segmentation(f"folder:{root}")


def test_tokens_that_tell_classes_apart_give_all_and_random_ones_chance(tmp_path):
    data = stripes(tmp_path, [(0, 1), (1, 2), (2, 0), (0, 2)])  # stripes end where patches do
    found = evaluate_in_context(ColourEncoder(), data, QUICK, workspace(tmp_path))
    assert found.metrics == pytest.approx({"miou": 1, "accuracy": 1, "mean_accuracy": 1, "patch_neighbours": 1})
    assert found.headline == "miou" and found.protocol["kept"] == 64 and found.data.images == {"train": 4, "test": 4}
    chance = evaluate_in_context(ColourEncoder(noise=True), data, QUICK, workspace(tmp_path)).metrics
    assert chance["miou"] < 0.5 and 0.2 < chance["patch_neighbours"] < 0.55


def test_photos_of_any_shape_are_scaled_to_whole_patches(tmp_path):
    data = stripes(tmp_path, [(0, 1), (1, 2), (0, 2)], size=(8, 5))  # smaller than a patch
    result = evaluate_in_context(ColourEncoder(), data, QUICK, workspace(tmp_path))
    assert result.metrics["miou"] > 0.9
    thin = stripes(tmp_path / "thin", [(0, 1), (1, 2), (0, 2)], size=(400, 3))
    assert evaluate_in_context(ColourEncoder(), thin, QUICK, workspace(tmp_path)).metrics["miou"] > 0.9


def test_the_memory_is_bounded_and_takes_the_same_of_each_image(tmp_path):
    data = stripes(tmp_path, [(0, 1), (1, 2), (2, 0), (0, 2)])
    said = []
    config = InContextConfig(size=56, memory=30, workers=0)
    memory = remember(tiny_encoder(), data, config, workspace(tmp_path, say=said.append))
    assert len(memory.features) == len(memory.labels) == 28 and said == ["28 labelled patches of 4 images"]
    assert torch.allclose(memory.labels.sum(1), torch.ones(28))
    assert torch.allclose(memory.features.float().norm(dim=1), torch.ones(28), atol=1e-3)
    fewer = remember(tiny_encoder(), data, InContextConfig(size=56, memory=3, workers=0), workspace(tmp_path))
    assert len(fewer.features) == 3  # a patch of each of three images


def test_two_processes_and_workers_find_what_one_does(tmp_path):
    data = stripes(tmp_path, [(0, 1), (1, 2), (2, 0)])
    alone = evaluate_in_context(tiny_encoder(), data, QUICK, workspace(tmp_path)).metrics
    for found in together(lambda p: evaluate_in_context(tiny_encoder(), data, QUICK, workspace(tmp_path, p))):
        assert found.metrics == pytest.approx(alone)
    other = InContextConfig(size=56, memory=1000, neighbours=5, workers=1, batch_size=2)
    assert evaluate_in_context(tiny_encoder(), data, other, workspace(tmp_path)).metrics == pytest.approx(alone)


def test_masks_without_two_classes_are_refused(tmp_path):
    one = stripes(tmp_path / "one", [(0, 1)], numbers=(0, 0, 0))
    with pytest.raises(DataError, match=r"one show 1 of 1 classes: a vote needs two or more"):
        evaluate_in_context(ColourEncoder(), one, QUICK, workspace(tmp_path))
    (tmp_path / "none/train").mkdir(parents=True)
    none = stripes(tmp_path / "none", [(0, 1)], numbers=(255, 255, 255))
    with pytest.raises(DataError, match=r"none show 0 of 1 classes"):
        evaluate_in_context(ColourEncoder(), none, QUICK, workspace(tmp_path))
    blank = stripes(tmp_path / "blank", [(0, 1)])
    blank.test._table[:] = IGNORED
    with pytest.raises(DataError, match=r"test masks of folder:.* have no labelled pixel"):
        evaluate_in_context(ColourEncoder(), blank, QUICK, workspace(tmp_path))


def test_settings_that_cannot_work(tmp_path):
    data = stripes(tmp_path, [(0, 1)])
    with pytest.raises(ConfigError, match=r"in_context\.size is 9, less than the model's patch of 14 pixels"):
        evaluate_in_context(ColourEncoder(), data, InContextConfig(size=9, workers=0), workspace(tmp_path))
    for wrong in ({"memory": 0}, {"neighbours": 0}, {"temperature": 0}, {"size": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=r"in_context\."):
            InContextConfig(**wrong)
