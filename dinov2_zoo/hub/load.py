"""The only file that speaks to the Hub: fetch a model's files, publish a folder."""

import os
import re
import time
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever client the Hub's library was built on; not all of its network errors are OSError
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dinov2_zoo.errors import CheckpointError, HubError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.models.zoo import MODELS, nearest_model
from dinov2_zoo.weights.read import FILES

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# transformers_model.safetensors and heads are not needed to load a backbone: they are not fetched.
PATTERNS = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try, when the Hub stumbles or the line is cut; huggingface_hub itself tries once."""
CUT_OFF = ("RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError")

OFFLINE = (
    "Offline, set HF_HUB_OFFLINE=1 to use what was fetched before, or name a folder or file of weights on this machine."
)


def fetch(source: str | Path, *, revision: str | None = None, heads: bool = False, everything: bool = False) -> Path:
    """The folder or file where a model's weights lie, fetched from the Hub if need be.

    Args:
        source: A folder, a file, a Hub id such as "facebook/dinov2-base", or a short name of the registry, "vitb14".
        revision: Branch, tag or commit on the Hub.
        heads: Fetch the file of heads too.
        everything: Fetch every file of the repository.

    Raises:
        HubError: The Hub cannot be reached, or has no such model for you.
        CheckpointError: `source` is a path, and nothing is there.
    """
    name = str(source)
    # Not Path.expanduser: it raises where there is no such user.
    path = Path(os.path.expanduser(name))
    if name and path.exists():
        return path
    checksum = None
    if name in REGISTRY:
        entry = REGISTRY[name]
        checksum = entry.sha256 if revision is None else None
        name, revision = entry.repository, revision or entry.revision
    elif name in MODELS:
        raise HubError(
            f"`{name}` names an architecture that nobody has published weights of: take one of {', '.join(REGISTRY)}, "
            f'a Hub id, folder or file, or build it untrained with VisionTransformer(model_config("{name}")).'
        )
    if name.endswith(WEIGHT_SUFFIXES) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "~")):
        near = None if "/" in name or "\\" in name or name.endswith(WEIGHT_SUFFIXES) else nearest_model(name)
        hint = f"did you mean `{near}`? Else name" if near else "name"
        raise CheckpointError(f"`{name}` does not exist: {hint} a folder, a file of weights, or a Hub id (owner/name).")
    try:
        patterns = ["*"] if everything else [*PATTERNS, "heads.safetensors"] if heads else PATTERNS
        folder = _download(name, revision, patterns)
        if not any((folder / file).is_file() for file in FILES):
            folder = _download(name, revision, [*PATTERNS, *PICKLES])
    except GatedRepoError as error:
        raise HubError(f"{name} is gated: accept its terms on the Hub, then log in with `hf auth login`.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise HubError(
            f"The Hub has no model {name}{at} that you may read: check its id, or `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError) as error:
        raise HubError(f"{name} cannot be fetched from the Hub ({type(error).__name__}). {OFFLINE}") from error
    if checksum is not None and sha256_of(folder / FILES[0]) != checksum:
        raise HubError(f"{folder / FILES[0]} is not the file that {name} had when it was pinned: remove it, ask again.")
    return folder


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch some files; what came of a file before the line was cut is not fetched again."""
    for pause in (*PAUSES, None):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HTTPError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            passing = (status is not None and status >= 500) or type(error).__name__ in CUT_OFF
            if pause is None or not passing:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def upload(
    folder: Path, name: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Upload a folder as a model, in one commit; what the Hub holds already of large files is not sent again.

    Args:
        folder: All its files go up.
        name: Hub id, owner/name.
        private: Make a new repository private.
        revision: Branch, made if need be; default: main.
        token: Default: from HF_TOKEN or `hf auth login`.

    Returns:
        The model's address.

    Raises:
        HubError: The Hub cannot be reached, or refuses.
    """
    try:
        api = HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=name, revision=revision, commit_message="Upload a model of dinov2-zoo"
        )
    except (HFValidationError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        words = " ".join(str(error).split())
        raise HubError(
            f"{name} cannot be uploaded ({words}): check the id, and log in with `hf auth login`."
        ) from error
    return f"{api.endpoint}/{name}" + (f"/tree/{revision}" if revision else "")
