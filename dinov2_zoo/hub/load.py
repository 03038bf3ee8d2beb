"""The only file that speaks to the Hub: look a model up, fetch its files, publish a folder."""

import os
import re
import time
from dataclasses import dataclass
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

from dinov2_zoo.errors import CheckpointError, HubError, first_line
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


@dataclass(frozen=True)
class Remote:
    """A model's repository, as the Hub describes it."""

    revision: str
    """Commit of its main branch."""
    private: bool
    names: list[str]
    """Of its files."""
    checksums: dict[str, str]
    """SHA-256 of its large files, by name."""


def look_up(name: str, *, token: str | None = None) -> Remote | None:
    """What the Hub holds under an id; None: nothing, or nothing that you may see.

    Raises:
        HubError: The Hub cannot be reached, or does not take such an id.
    """
    try:
        info = HfApi(token=token).model_info(name, files_metadata=True)
    except RepositoryNotFoundError:
        return None
    except (HFValidationError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(
            f"{name} cannot be looked up on the Hub ({type(error).__name__}): check the id and the network, or log in "
            "with `hf auth login`."
        ) from error
    files = info.siblings or []
    return Remote(
        revision=info.sha or "main",
        private=bool(info.private),
        names=[file.rfilename for file in files],
        checksums={file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None},
    )


def download(
    name: str,
    folder: Path,
    *,
    revision: str | None = None,
    patterns: list[str] | None = None,
    token: str | None = None,
) -> None:
    """Fetch a model's files into a folder of their own; what lies there already is not fetched again.

    Args:
        name: Hub id.
        folder: Made if need be; the Hub's cache is not used.
        revision: Branch, tag or commit.
        patterns: Names of files; default: the backbone's weights and configuration.
        token: Default: from HF_TOKEN or `hf auth login`.

    Raises:
        HubError: The Hub cannot be reached, or has no such model for you.
    """
    try:
        _download(name, revision, patterns or PATTERNS, folder, token)
        if patterns is None and not any((folder / file).is_file() for file in FILES):
            _download(name, revision, [*PATTERNS, *PICKLES], folder, token)
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError) as error:
        raise HubError(
            f"{name} cannot be fetched from the Hub ({first_line(error)}): try again, what came is kept."
        ) from error


def _download(
    name: str, revision: str | None, patterns: list[str], folder: Path | None = None, token: str | None = None
) -> Path:
    """Fetch some files; what came of a file before the line was cut is not fetched again."""
    for pause in (*PAUSES, None):
        try:
            kept = snapshot_download(name, revision=revision, allow_patterns=patterns, local_dir=folder, token=token)
            return Path(kept)
        except (HfHubHTTPError, HTTPError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            passing = (status is not None and status >= 500) or type(error).__name__ in CUT_OFF
            if pause is None or not passing:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def upload(
    folder: Path, name: str, *, private: bool = True, revision: str | None = None, token: str | None = None
) -> str:
    """Upload a folder as a model, in one commit; what the Hub holds already of large files is not sent again.

    Args:
        folder: All its files go up.
        name: Hub id, owner/name.
        private: Make a new repository private, and refuse one that is public.
        revision: Branch, made if need be; default: main.
        token: Default: from HF_TOKEN or `hf auth login`.

    Returns:
        The model's address.

    Raises:
        HubError: The Hub cannot be reached, or refuses.
    """
    if private and (remote := look_up(name, token=token)) is not None and not remote.private:
        raise HubError(f"{name} is there already, and public: say that it may be (--public), or choose another id.")
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
