"""Folders of Google Drive, by gdown."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cfx.errors import NetworkError, OutputError
from cfx.io.addresses import DriveAddress
from cfx.io.download import CONTINUE_HINT, OFFLINE_HINT, Unreachable
from cfx.io.lockfile import Digest, digest_of

ATTEMPTS = 3


def fetch_folder(address: DriveAddress, directory: Path) -> dict[str, Digest]:
    """Brings all files of a folder into a directory; an interrupted download is continued.

    Google says no digests: what a file is, is recorded when it comes for the first time.

    Returns:
        Names, relative to the directory -> what came.

    Raises:
        NetworkError: if they do not arrive.
        OutputError: if they cannot be written.
    """
    import gdown
    import requests
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            gdown.download_folder(
                id=address.folder,
                output=str(directory),
                quiet=True,
                use_cookies=False,
                resume=True,
                timeout=(10, 30),
                retries=ATTEMPTS,
            )
    except (DownloadError, FileURLRetrievalError) as error:
        first = str(error).splitlines()[0]
        raise NetworkError(f"Google Drive did not hand over {address.folder}: {first}", CONTINUE_HINT) from error
    except requests.ConnectionError as error:
        raise Unreachable("cannot reach drive.google.com", OFFLINE_HINT) from error
    except requests.RequestException as error:
        raise NetworkError(f"Google Drive did not hand over {address.folder}: {error}", CONTINUE_HINT) from error
    except OSError as error:
        if error.errno is None:  # that of requests, for certificates that are not there
            raise NetworkError(f"cannot ask Google Drive: {error}", "look at REQUESTS_CA_BUNDLE") from error
        raise OutputError(
            f"cannot write {directory}: {error.strerror or error}", "set CFX_CACHE to a directory with room"
        ) from error
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(".part"))
    if not files:
        raise NetworkError(f"the folder {address.folder} on Google Drive is empty")
    return {path.relative_to(directory).as_posix(): digest_of(path) for path in files}
