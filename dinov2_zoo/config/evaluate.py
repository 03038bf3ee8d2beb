"""What is measured of a frozen model, on which data, by which settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from dinov2_zoo.config.checks import check
from dinov2_zoo.config.classification import KnnConfig, LinearConfig, LogisticConfig
from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.config.depth import DepthConfig
from dinov2_zoo.config.in_context import InContextConfig
from dinov2_zoo.config.retrieval import RetrievalConfig
from dinov2_zoo.config.segmentation import SegmentationConfig
from dinov2_zoo.config.training import RuntimeConfig
from dinov2_zoo.config.video import VideoConfig


@dataclass(frozen=True)
class EvaluationData:
    """Where the images of each kind of task are."""

    train: str | None = None
    """Labelled images for knn, linear and logistic: all that recipes take as --data with labels, or
    imagenet:/path@train."""
    test: str | None = None
    """Labelled images that these are measured on, imagenet:/path@val; without it knn leaves one out, and linear and
    logistic keep a fifth of the training images out."""
    robust: str | None = None
    """More test sets for the linear probe, separated by commas: imagenet-a:/path, imagenet-r:, imagenet-c:,
    imagenet-sketch:, imagenet-v2:, real:."""
    depth: str | None = None
    """nyu:/path, kitti:/path, sunrgbd:/path, folder:/path or package:motorcycle."""
    segmentation: str | None = None
    """ade20k:/path, voc:/path, cityscapes:/path, folder:/path or composites:/folder/of/cut-outs; in_context uses
    them too."""
    correspondence: str | None = None
    """views:SOURCE with any images that recipes take as --data, spair:/path (also /path@val, @trn) or navi:/path (also
    /path@multiview)."""
    retrieval: str | None = None
    """roxford:/path, rparis:/path, amstertime:/path, met:/path or folder:/path."""
    video: str | None = None
    """davis:/path, folder:/path or composites:/folder/of/cut-outs."""


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation of one or several models."""

    model: str
    """What to measure: a short name, Hub id, folder, file, untrained:NAME, timm:NAME or transformers:NAME. Several are
    separated by commas, and each may be given a name of its own: teacher=facebook/dinov2-base,mine=runs/x/student."""
    tasks: str = "knn"
    """Tasks, separated by commas: knn, linear, logistic, depth:lin1, depth:lin4, depth:dpt, segmentation:linear,
    segmentation:ms, in_context, correspondence, retrieval, video, speed."""
    data: EvaluationData = field(default_factory=EvaluationData)
    """Images."""
    out: str | None = None
    """Folder for records and heads, one below it for each model; default: `evaluation` in the run folder of a run's
    student, runs/evaluation/<model> for others."""
    overwrite: bool = False
    """Measure what has been measured before, too: otherwise a record of the same weights, data and settings is kept."""
    knn: KnnConfig = field(default_factory=KnnConfig)
    """k-NN."""
    linear: LinearConfig = field(default_factory=LinearConfig)
    """Linear probes."""
    logistic: LogisticConfig = field(default_factory=LogisticConfig)
    """Logistic regression."""
    depth: DepthConfig = field(default_factory=DepthConfig)
    """Depth heads."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Segmentation heads."""
    in_context: InContextConfig = field(default_factory=InContextConfig)
    """Segmentation by the vote of similar patches."""
    correspondence: CorrespondenceConfig = field(default_factory=CorrespondenceConfig)
    """Correspondence of patches."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Retrieval."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Video segmentation."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Device, precision, threads, seed."""

    def __post_init__(self) -> None:
        check(bool(self.model.strip()), "--model is empty: name a model, folder or file.")
        check(bool(self.tasks.strip()), "--tasks is empty: name some, as in --tasks knn,linear.")
