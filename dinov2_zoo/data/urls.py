"""Photos on the web, within a limit of time and of size."""

import http.client
import time
import urllib.error
import urllib.request

from dinov2_zoo.data.decode import DecodeError

SECONDS = 30.0
"""Longest time for one photo, connection and all (chosen here: 64 MiB at 17 Mbit/s)."""
MAX_BYTES = 64 * 2**20
"""Largest file (chosen here: above the JPEGs of the largest cameras)."""


class Urls:
    """Photos at http and https addresses, fetched when they are read, over the proxies of the environment.

    Args:
        addresses: One for each photo.
    """

    labels: list[int] | None = None
    classes: list[str] | None = None

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    def __len__(self) -> int:
        return len(self._addresses)

    def read(self, index: int) -> bytes:
        """The photo's bytes.

        Raises:
            DecodeError: It cannot be fetched, or not within `SECONDS` and `MAX_BYTES`.
        """
        # Many servers refuse Python's own name.
        request = urllib.request.Request(self._addresses[index], headers={"User-Agent": "dinov2-zoo"})
        end = time.monotonic() + SECONDS
        parts: list[bytes] = []
        size = 0
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                # In pieces, and what has come by then: the socket's own limit starts again with every byte.
                while part := answer.read1(1 << 16):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_BYTES:
                        raise DecodeError(f"The file is larger than {MAX_BYTES >> 20} MiB: fetch it yourself.")
                    if time.monotonic() > end:
                        raise DecodeError(f"The file does not come within {SECONDS:g} s: fetch it yourself.")
        except urllib.error.HTTPError as error:
            raise DecodeError(f"The server answers {error.code} {error.reason}: check the address.") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise DecodeError(f"It cannot be fetched ({reason}): check the address and the network.") from error
        return b"".join(parts)

    def name(self, index: int) -> str:
        """The address."""
        return self._addresses[index]
