"""Curves: read what a run really leaves behind, draw it to scale."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dinov2_zoo.errors import DataError
from dinov2_zoo.reports.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    curve_svg,
    curves,
    nice_ticks,
    read_metrics,
)


def test_a_stopped_runs_half_line_is_left_out_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": s, "loss": 1 / s, "knn": math.nan if s == 1 else 0.5}) for s in (1, 2)]
    path.write_text("\n".join([*good, '{"step": 3, "lo']))
    assert read_metrics(path) == {"loss": [(1, 1.0), (2, 0.5)], "knn": [(2, 0.5)]}
    path.write_text("\n".join([good[0], "not json", good[1]]))
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_the_line_is_drawn_to_scale():
    svg = curve_svg("loss", [(0, 1.0), (50, 0.0), (100, 0.5)])
    ElementTree.fromstring(svg)  # well-formed
    line = re.search(r'class="line" d="M([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+)"', svg)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    expected = [LEFT, TOP, (LEFT + right) / 2, bottom, right, (TOP + bottom) / 2]
    assert [float(x) for x in line.groups()] == pytest.approx(expected, abs=0.06)


def test_order_and_what_gets_no_curve():
    two = [(1, 1.0), (2, 2.0)]
    names = ["lr", "gradient_norm/backbone", "dino", "skipped", "loss", "images_per_second"]
    shown = [
        re.search(r'aria-label="(.*?) over', svg).group(1)
        for svg in curves(dict.fromkeys(names, two) | {"one": two[:1]})
    ]
    assert shown == ["loss", "dino", "gradient norm, backbone", "lr", "images per second"]


@pytest.mark.parametrize("low,high", [(0.0, 1.0), (1.02, 1.07), (-3.0, 250.0), (2.0, 2.0), (0.0, 0.0), (1e-6, 9e-4)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6 and ticks == sorted(ticks)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12


def test_a_constant_still_makes_a_picture():
    ElementTree.fromstring(curve_svg("images/s <fast>", [(1, 3.0), (2, 3.0)]))
