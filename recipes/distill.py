"""Distil a frozen teacher into a small student.

Paper     Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 5.
Try it    accelerate launch recipes/distill.py
          A ViT-S/14 into a ViT-Ti/14 on the photos that three Python packages ship: minutes on 2 CPU cores.
Your own  accelerate launch recipes/distill.py --teacher facebook/dinov2-base --data /your/folder
Presets   recipes/configs/: demo.yaml (the default), one_gpu.yaml, paper_vits14.yaml; choose with --config.
Result    runs/<name>/student loads with Dinov2Model, timm and transformers; runs/<name>/report.html shows it.
"""

import dataclasses
import itertools
from pathlib import Path

from dinov2_zoo import Dinov2Model
from dinov2_zoo.checkpoints.resume import latest_checkpoint, load_checkpoint, save_checkpoint
from dinov2_zoo.cli import parse, run
from dinov2_zoo.config import DistillConfig, to_dict
from dinov2_zoo.data.holdout import hold_out
from dinov2_zoo.data.loader import SkipLedger, train_loader
from dinov2_zoo.data.sources import open_source
