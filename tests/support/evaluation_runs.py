"""Runs of the evaluation as processes of their own, on small data."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

QUICK = """
data: {{train: {root}/photos, depth: package:motorcycle, segmentation: 'composites:{root}/cutouts',
        correspondence: 'views:{root}/photos',
        retrieval: 'folder:{root}/photos', video: 'composites:{root}/cutouts'}}
knn: {{size: 28, k: [1, 3]}}
linear: {{size: 28, steps: 10, batch_size: 8, rates: [0.1], path: cached}}
logistic: {{size: 28, strengths: 3}}
depth: {{steps: 2, batch_size: 2, crop: [28, 28], mean_only_steps: 1, flip_test: false}}
segmentation: {{steps: 2, warmup_steps: 0, batch_size: 2, short_side: 56, crop: 56, ratios: [1.0]}}
in_context: {{size: 56, memory: 40}}
correspondence: {{size: 56, views: {{pairs: 2}}}}
retrieval: {{size: 28}}
video: {{short_side: 56}}
runtime: {{cpu: true, threads: 1, precision: fp32}}
"""


def evaluate(place, *arguments):
    command = [sys.executable, str(ROOT / "recipes/evaluate.py"), "--config", str(place / "quick.yaml"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    return done.returncode, done.stdout, done.stderr
