"""The feature store: the same by any number of processes, resumed shard by shard, and never silently wrong."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from stand_ins import Part, tiny_encoder, workspace

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders import feature_store
from dinov2_zoo.evaluation.encoders.encoder import BackboneEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, stored_features


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD", 4)
    for number in range(10):
        folder = tmp_path / "images" / ("a" if number < 5 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (25 * number, 90, 200 - 20 * number)).save(folder / f"{number}.png")
    return open_source(str(tmp_path / "images"))


class Counting(BackboneEncoder):
    """Counts the images that it sees."""

    seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return super().__call__(images)


def counting():
    return Counting(tiny_encoder().backbone)


KIND = Kind(size=28)


def stored(encoder, photos, folder, processes=None, kind=KIND):
    return stored_features(encoder, photos, kind, workspace(folder, processes))


def test_features_are_those_of_the_model_in_the_sources_order(photos, tmp_path):
    encoder = tiny_encoder()
    found = stored(encoder, photos, tmp_path / "store", kind=Kind(28, 2, mean=True))
    assert found.features.shape == (10, 3 * encoder.dim) and found.features.dtype == torch.float16
    assert found.labels.tolist() == photos.labels and found.indices.tolist() == list(range(10))
    image = eval_image(decode(photos.read(7)), 28)[None]
    first, last = encoder.layers(image, [2, 3], norm=True)
    expected = torch.cat([first.class_token, last.class_token, last.patches.mean((2, 3))], 1)[0]
    assert torch.allclose(found.features[7].float(), expected, atol=2e-3)


def test_a_finished_shard_is_never_made_again(photos, tmp_path):
    encoder = counting()
    whole = stored(encoder, photos, tmp_path / "store")
    assert encoder.seen == 10
    stored(encoder, photos, tmp_path / "store")
    assert encoder.seen == 10
    # A stop in the middle: the second of three shards is lacking, it alone is made.
    next((tmp_path / "store").rglob("000001.safetensors")).unlink()
    again = stored(encoder, photos, tmp_path / "store")
    assert encoder.seen == 14
    assert torch.equal(whole.features, again.features)


def test_each_process_makes_its_shards_and_all_read_all(photos, tmp_path):
    encoders = [counting(), counting()]

    class Stop(Exception):
        pass

    class Early(Part):
        """The other process has not finished: reading would find nothing, so stop at the barrier behind the work."""

        barriers = 0

        def barrier(self):
            self.barriers += 1
            if self.barriers == 2:
                raise Stop

    with pytest.raises(Stop):
        stored(encoders[1], photos, tmp_path / "store", Early(1, 2))
    assert encoders[1].seen == 4  # the middle one of three shards
    both = stored(encoders[0], photos, tmp_path / "store", Part(0, 1))
    assert encoders[0].seen == 6
    alone = stored(counting(), photos, tmp_path / "alone")
    assert torch.equal(both.features, alone.features)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_shard_is_named(photos, tmp_path, damage):
    stored(tiny_encoder(), photos, tmp_path / "store")
    shard = next((tmp_path / "store").rglob("000001.safetensors"))
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[:-10]
    else:
        content[-10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"000001\.safetensors is damaged.*it alone is made again"):
        stored(tiny_encoder(), photos, tmp_path / "store")


def test_another_models_features_are_kept_apart(photos, tmp_path):
    one = stored(tiny_encoder(seed=0), photos, tmp_path / "store")
    two = stored(tiny_encoder(seed=1), photos, tmp_path / "store")
    assert not torch.equal(one.features, two.features)
    assert len(list((tmp_path / "store" / "features").iterdir())) == 2


def test_an_image_that_cannot_be_decoded_is_left_out_and_listed(photos, tmp_path):
    (tmp_path / "images" / "a" / "3.png").write_bytes(b"no image")
    found = stored(tiny_encoder(), open_source(str(tmp_path / "images")), tmp_path / "store")
    assert found.indices.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [name.endswith("a/3.png") for name in found.skipped] == [True]


def test_size_is_told_before(photos, tmp_path):
    said = []
    stored_features(tiny_encoder(), photos, KIND, workspace(tmp_path / "s", say=said.append))
    assert len(said) == 1 and "10 images" in said[0] and "3 of 3 shards" in said[0]


def test_an_image_in_two_shards_counts_once(photos, tmp_path):
    whole = stored(tiny_encoder(), photos, tmp_path / "store")
    second = next((tmp_path / "store").rglob("000001.safetensors"))
    with safe_open(second, "pt") as file:
        metadata, parts = file.metadata(), [file.get_tensor(name) for name in ("features", "index")]
    features, index = torch.cat([whole.features[:2], parts[0]]), torch.cat([torch.tensor([0, 1]), parts[1]])
    metadata["digest"] = feature_store._digest(features, index)
    save_file({"features": features, "index": index}, second, metadata)
    again = stored(tiny_encoder(), photos, tmp_path / "store")
    assert torch.equal(again.features, whole.features) and again.indices.tolist() == list(range(10))
