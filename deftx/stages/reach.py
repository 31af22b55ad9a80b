"""The first look at a remote storage: what is wrong with it is said before anything is resolved, downloaded or trained.

A folder is not looked at: its first use says as much at once. Nor is a storage that a trial opens: the driver looked,
and asked every node to.
"""

from __future__ import annotations

import copy
import queue
import threading
import uuid
from typing import Any, TypeVar

from deftx.errors import StoreError, reason
from deftx.stages.objects import Objects, causes, codes

S = TypeVar("S", bound=Objects)

SECONDS = 20.0
"""How long an answer is waited for at most."""
_RIGHTS = (
    "its credentials, such as an instance profile, need s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on what is in it (of Google Cloud: the role Storage Object Admin)"
)
_KEYS = (
    "give this machine an instance profile that may use the bucket, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "(of Google Cloud: a service account, or GOOGLE_APPLICATION_CREDENTIALS)"
)
_REGION = "set AWS_DEFAULT_REGION to the bucket's own region"
_NAME = "correct the bucket's name, or make the bucket: aws s3 mb s3://{0}, or gcloud storage buckets create gs://{0}"
_ADVICE = {
    **dict.fromkeys(("NoSuchBucket", "FileNotFoundError", "InvalidBucketName", "ParamValidationError"), _NAME),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "403", "PermissionError"), _RIGHTS),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"), _KEYS),
    **dict.fromkeys(("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"), _KEYS),
    **dict.fromkeys(("ProfileNotFound", "DefaultCredentialsError"), _KEYS),
    **dict.fromkeys(("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "InvalidRegionError"), _REGION),
}
"""What would be right, by S3's code of an error or by its class; another is the network's or the storage's own."""


def reachable(store: S, *, writes: bool = False) -> S:
    """The same storage, which answers.

    Args:
        store: a folder is taken as it is.
        writes: a small object is written, read and removed as well.

    Raises:
        StoreError: when it will not answer as it is: the bucket, its region, credentials or rights are wrong.
        ConnectionError: when it does not answer now.
    """
    if store.local:
        return store
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_try(_impatient(store), writes)), daemon=True).start()
    try:
        if (error := answers.get(timeout=SECONDS)) is None:
            return store
    except queue.Empty:
        error = ConnectionError(f"{store.url}: no answer within {SECONDS:g} seconds")
    if isinstance(error, ValueError | NotImplementedError):  # of an address or a file system that cannot be one
        raise StoreError(f"{store.url}: cannot be used as a storage: {reason(error)}") from None
    if not isinstance(error, ConnectionError):
        raise error
    names = [*codes(error), *(type(link).__name__ for link in causes(error))]
    names += ["403"] * ("Forbidden" in str(error))  # all that gcsfs says
    if name := next((name for name in names if name in _ADVICE), None):
        bucket = store.root.strip("/").partition("/")[0]
        words = str(error).partition(": Bucket name must match")[0]  # what follows is a long pattern
        raise StoreError(f"{words}; {_ADVICE[name].format(bucket)}") from None
    advice = "see whether this machine has a network, and what region (AWS_DEFAULT_REGION) and endpoint it is told"
    raise ConnectionError(f"{error}; {advice}") from None


def _try(store: Objects, writes: bool) -> Exception | None:
    """What is wrong, if anything."""
    try:
        with store.asked(FileNotFoundError):
            store.fs.info(store.path("sweeps"))
    except FileNotFoundError:
        pass  # nothing is there yet
    except Exception as error:
        return error
    return _try_to_write(store) if writes else None


def _try_to_write(store: Objects) -> Exception | None:
    name, content = f"probe-{uuid.uuid4().hex}", b"written, read and removed at the start of a sweep\n"
    try:
        store.write(content, name)
        if store.read(name) != content:
            return StoreError(f"{store.url}: what is written there is not what is read")
        store.remove(name)
        # S3 says so within its answer, which its library takes for a success
        return StoreError(f"{store.url}: nothing can be removed there; {_RIGHTS}") if store.exists(name) else None
    except Exception as error:
        return error


def _impatient(store: Objects) -> Objects:
    """The same storage, which is asked twice at most."""
    quick = copy.copy(store)
    if "s3" in store.fs.protocol:
        options: dict[str, Any] = dict(store.fs.storage_options)
        waits = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2}}
        quick.fs = type(store.fs)(**{**options, "config_kwargs": {**options.get("config_kwargs", {}), **waits}})
        quick.fs.retries = 2
    return quick
