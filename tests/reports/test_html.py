"""The report: one file, nothing from outside, everything escaped, never half-written."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from dinov2_zoo.evaluation.table import Table
from dinov2_zoo.reports.html import write_report


@pytest.fixture
def page(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": s, "loss": 1 / s}) + "\n" for s in (1, 2, 3)))
    write_report(
        tmp_path / "report.html",
        title="demo <1>",
        summary="First.\n\nSecond & last.",
        tables=[Table("Agreement", ["", "before", "after"], [["patch cosine", 0.0, 0.6344]], note="9 photos")],
        pictures=[("Features", Image.new("RGB", (40, 20), (200, 30, 90)))],
        metrics_file=metrics,
        config={"optim": {"steps": 300}, "teacher": "<script>alert(1)</script>"},
        provenance={"torch": "2.15"},
    )
    return (tmp_path / "report.html").read_text()


def test_everything_handed_in_is_on_the_page(page):
    for text in ("demo &lt;1&gt;", "<p>First.</p>", "Second &amp; last.", "patch cosine", "0.634", "9 photos"):
        assert text in page
    for text in ("optim.steps", "300", "torch", "2.15", 'aria-label="loss over steps"'):
        assert text in page


def test_nothing_comes_from_outside_and_nothing_runs(page):
    assert not re.search(r"https?://|@import|<link|url\(|<script", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="(.*?)"', page))


def test_the_picture_survives(page):
    data = re.search(r'src="data:image/jpeg;base64,(.*?)"', page).group(1)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (40, 20)
    assert max(abs(a - b) for a, b in zip(picture.getpixel((20, 10)), (200, 30, 90), strict=True)) < 6


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, title="old", summary="")
    damaged = tmp_path / "metrics.jsonl"
    damaged.write_text("nonsense\n{}\n")
    with pytest.raises(Exception, match="line 1"):
        write_report(path, title="new", summary="", metrics_file=damaged)
    assert "old" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "report.html"]


def test_a_run_without_curves_or_pictures_has_no_empty_sections(tmp_path):
    write_report(tmp_path / "report.html", title="short", summary="One.", metrics_file=tmp_path / "none.jsonl")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>" not in page
