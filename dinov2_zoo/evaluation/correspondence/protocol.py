"""Correspondence of patches: each kind of data has its own measure."""

from collections.abc import Callable

from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.correspondence.keypoints import measure_keypoints
from dinov2_zoo.evaluation.correspondence.navi import FramePairs, open_navi
from dinov2_zoo.evaluation.correspondence.spair import KeypointPairs, open_spair
from dinov2_zoo.evaluation.correspondence.surfaces import measure_surfaces
from dinov2_zoo.evaluation.correspondence.view_pairs import Photos, measure_views, open_photos
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace

CorrespondenceData = Photos | KeypointPairs | FramePairs

_READERS: dict[str, Callable[[str], CorrespondenceData]] = {
    "views": open_photos,
    "spair": open_spair,
    "navi": open_navi,
}


def open_correspondence(text: str) -> CorrespondenceData:
    """Open a data set.

    Args:
        text: One of
            - views:SOURCE: any images, by all that recipes take as --data; two views are cut out of each, so that it is
              known where every patch of one lies in the other;
            - spair:/path: SPair-71k, keypoints of two photos of a category; its test pairs, or those of @val, @trn;
            - navi:/path: NAVI, points of an object's surface in two photos of it; those in different places (wild_set),
              or, with @multiview, in one scene.

    Raises:
        DataError: A part is missing or does not fit; names it.
    """
    kind, _, path = text.partition(":")
    if kind not in _READERS or not path:
        raise DataError(f"There are no pairs {text!r}: use views:SOURCE, spair:/path or navi:/path.")
    return _READERS[kind](path)


def evaluate_correspondence(
    encoder: LayeredEncoder, data: CorrespondenceData, config: CorrespondenceConfig, workspace: Workspace
) -> Result:
    """Match patches by cosine, and judge the matches as the kind of data asks.

    Args:
        encoder: The model; last block's patch tokens with the final norm.
        data: Pairs.
        config: Settings.
        workspace: Processes share the pairs; nothing is kept.

    Raises:
        DataError: A file is missing or does not fit; names it.
        ConfigError: Images are to be smaller than a patch.
    """
    if isinstance(data, Photos):
        return measure_views(encoder, data, config, workspace)
    if isinstance(data, KeypointPairs):
        return measure_keypoints(encoder, data, config, workspace)
    return measure_surfaces(encoder, data, config, workspace)
