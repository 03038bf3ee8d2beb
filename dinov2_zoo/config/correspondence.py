"""How correspondence of patches is measured: views of one photo, keypoints, surfaces; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class ViewsConfig:
    """How two views are cut out of a photo (all numbers chosen here)."""

    pairs: int = 4
    """Pairs of views of each photo."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Side of a view, as a share of the photo's short side: least and most."""
    rotation: float = 30.0
    """The second view is turned by up to so many degrees either way."""
    perspective: float = 0.1
    """Each corner of the second view moves by up to so much of the view's side, along each axis."""
    flip: float = 0.5
    """Probability that the second view is a mirror image."""
    colour: bool = True
    """Change brightness, contrast, saturation and hue of the second view, as for training a segmentation head."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        least, most = self.scale
        check(self.pairs >= 1, "correspondence.views.pairs must be at least 1.")
        check(0 < least <= most <= 1, "correspondence.views.scale must be two numbers in 0..1, the smaller one first.")
        check(0 <= self.rotation <= 180, "correspondence.views.rotation must lie between 0 and 180 degrees.")
        check(0 <= self.perspective < 0.25, "correspondence.views.perspective must be at least 0 and below 0.25.")
        check(0 <= self.flip <= 1, "correspondence.views.flip must lie between 0 and 1.")


@dataclass(frozen=True)
class CorrespondenceConfig:
    """Matches by the cosine of patch tokens."""

    size: int | None = None
    """Pixels, rounded to a multiple of the patch; none: the data set's own. views: side of a view (224). spair: longest
    side of the image (800; Probe3D pads it to a square of that side). navi: side of the object's crop (512;
    Probe3D)."""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views of one photo."""
    pairs: int | None = None
    """spair: most pairs of each category, drawn at random (Probe3D: 200). navi: most pairs in all. none: all."""
    matches: int = 1000
    """navi: matches of each pair that are judged, those that the ratio test likes best (Probe3D)."""
    batch_size: int = 16
    """Images per forward pass; changes nothing but speed."""
    workers: int = 4
    """Processes that read, per process that measures; 0: it reads itself."""

    def __post_init__(self) -> None:
        check(self.size is None or self.size >= 1, "correspondence.size must be at least 1.")
        check(self.pairs is None or self.pairs >= 1, "correspondence.pairs must be at least 1.")
        check(self.matches >= 1 and self.batch_size >= 1, "correspondence.matches and batch_size must be at least 1.")
        check(self.workers >= 0, "correspondence.workers must be 0 or more.")
