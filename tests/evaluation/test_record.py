"""A record says what was found, by which rules, on what."""

import json

import pytest

from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.record import (
    Computed,
    DataFacts,
    Result,
    cached_record,
    checksum,
    read_records,
    write_record,
)

RESULT = Result(
    {"rmse": 0.5, "a1": 0.9}, "rmse", {"steps": 3, "crop": (2, 4)}, DataFacts("nyu:/n", {"train": 2, "test": 1}, "abc")
)
COMPUTED = Computed(processes=2, device="cpu", seconds=1.234)
ASKED = {"settings": {"steps": 3, "sizes": (1, 2)}, "weights": "w"}


def test_a_record_comes_back_with_versions_and_hardware(tmp_path):
    written = write_record(tmp_path / "x", "vits14", "depth:lin4", RESULT, asked=ASKED, computed=COMPUTED)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["depth-lin4.json"]
    (record,) = read_records(tmp_path / "x")
    assert record == written
    assert record["metrics"] == {"rmse": 0.5, "a1": 0.9} and record["headline"] == "rmse"
    assert record["computed"] == {"processes": 2, "device": "cpu", "seconds": 1.2}
    assert record["protocol"] == {"steps": 3, "crop": [2, 4]}
    assert record["data"] == {"source": "nyu:/n", "images": {"train": 2, "test": 1}, "checksum": "abc"}
    assert {"torch", "machine", "git"} <= set(record["provenance"])


def test_the_checksum_tells_names_labels_and_order_apart():
    given = checksum([("a", 0), ("b", 1)])
    assert given == checksum([("a", 0), ("b", 1)])
    assert len({given, checksum([("b", 1), ("a", 0)]), checksum([("a", 0), ("b", 2)]), checksum([("a", 0)])}) == 4


def test_a_damaged_record_is_named(tmp_path):
    write_record(tmp_path, "m", "knn", RESULT, asked=ASKED, computed=COMPUTED)
    (tmp_path / "linear.json").write_text(json.dumps({})[:1])
    with pytest.raises(DataError, match=r"linear\.json is no record"):
        read_records(tmp_path)


def test_a_record_stands_for_exactly_what_was_asked(tmp_path):
    assert cached_record(tmp_path, "knn", ASKED) is None
    written = write_record(tmp_path, "m", "knn", RESULT, asked=ASKED, computed=COMPUTED)
    assert cached_record(tmp_path, "knn", ASKED) == written
    assert cached_record(tmp_path, "linear", ASKED) is None
    for other in ({**ASKED, "weights": "v"}, {**ASKED, "settings": {"steps": 4, "sizes": (1, 2)}}):
        assert cached_record(tmp_path, "knn", other) is None
    (tmp_path / "knn.json").write_text(json.dumps({**written, "format": 1}))
    assert cached_record(tmp_path, "knn", ASKED) is None
    (tmp_path / "knn.json").write_text("{")
    assert cached_record(tmp_path, "knn", ASKED) is None
