"""What the S3 client libraries raise, as the storage's own errors: a sentence and a hint each.

Their classes have no common root: botocore's BotoCoreError and ClientError, aiohttp's
ClientError, and OSError (time-outs, DNS, TLS). FAULTS names them all.
"""

from __future__ import annotations

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from orchestrator.errors import StorageError
from orchestrator.storage.protocol import Damaged, NotFound, Refused

FAULTS = (boto.BotoCoreError, boto.ClientError, ResponseParserError, aiohttp.ClientError, OSError)
"""Everything that a request can raise; asyncio's TimeoutError is an OSError."""

_PASSING = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "OperationAborted",
    "ConditionalRequestConflict",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AccessDenied", "403"}
_NO_KEYS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)

_TORN = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
)
CHECKSUM_TRIES = 3
"""Bytes that arrive damaged so often are damaged in the store."""

_KEYS_HINT = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials and AWS_PROFILE"
)
_RIGHTS_HINT = (
    "the credentials need s3:ListBucket, GetObject, PutObject, DeleteObject, "
    "AbortMultipartUpload and ListBucketMultipartUploads on this bucket"
)
_SENTENCES = {
    "InvalidAccessKeyId": ("the access key is not known there", _KEYS_HINT),
    "SignatureDoesNotMatch": ("the secret key is wrong", _KEYS_HINT),
    "InvalidToken": ("the session token is not valid", "check AWS_SESSION_TOKEN"),
    "AccessDenied": ("access denied", _RIGHTS_HINT),
    "403": ("access denied", _KEYS_HINT),
    "NoSuchBucket": (
        "the bucket does not exist",
        "create it, or mend checkpoint.uri or AWS_ENDPOINT_URL_S3",
    ),
    "InvalidBucketName": ("not a valid name of a bucket", "mend checkpoint.uri"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_REGION"),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it, best by NTP"),
    "NotImplemented": (
        "the store lacks an operation that is needed",
        "choose another checkpoint.uri",
    ),
}


def code_of(fault: BaseException) -> str:
    """S3's code of an error reply (`NoSuchKey`), its HTTP status if it has none, else ``."""
    if not isinstance(fault, boto.ClientError):
        return ""
    return str(fault.response.get("Error", {}).get("Code") or _status(fault))


def _status(fault: boto.ClientError) -> int:
    return int(fault.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def is_expired(fault: BaseException) -> bool:
    """True if the same credentials, read anew, may help."""
    return code_of(fault) in _EXPIRED


def is_denied(fault: BaseException) -> bool:
    """True if other credentials would help."""
    return code_of(fault) in _EXPIRED | _DENIED or isinstance(fault, _NO_KEYS)


def is_taken(fault: BaseException) -> bool:
    """True if a condition of the request did not hold."""
    return code_of(fault) in ("PreconditionFailed", "412")


def may_pass(fault: BaseException, tries: int) -> bool:
    """True if the same request, tried `tries` times, may succeed a moment later."""
    if isinstance(fault, boto.ClientError):
        status = _status(fault)
        return code_of(fault) in _PASSING or status in (408, 409, 429) or 500 <= status != 501
    if isinstance(fault, (*_NO_KEYS, boto.SSLError)):
        return False
    if isinstance(fault, boto.FlexibleChecksumError):
        return tries < CHECKSUM_TRIES
    return isinstance(fault, _TORN)


def translate(fault: BaseException, place: str, endpoint: str) -> StorageError:
    """The storage's error for `fault` at `place` (a URI)."""
    code = code_of(fault)
    if code == "NoSuchKey":
        return NotFound(f"{place}: not found")
    if code in _SENTENCES:
        sentence, hint = _SENTENCES[code]
        return Refused(f"{place}: {sentence} ({code}, {endpoint})", hint=hint)
    if code in _EXPIRED:
        return StorageError(
            f"{place}: the credentials have expired ({endpoint})",
            hint="renew them (for example `aws sso login`), then try again",
        )
    if isinstance(fault, _NO_KEYS):
        return Refused(f"{place}: no credentials for S3: {fault}", hint=_KEYS_HINT)
    if isinstance(fault, boto.FlexibleChecksumError):
        return Damaged(f"{place}: what arrives does not match its checksum")
    if code:
        message = fault.response["Error"].get("Message") or "no message"  # type: ignore[attr-defined]
        return StorageError(f"{place}: {endpoint} says {code}: {message}")
    if isinstance(fault, boto.SSLError):
        return StorageError(f"{place}: no trusted connection to {endpoint}: {fault}")
    return StorageError(
        f"{place}: {endpoint} does not answer: {fault or type(fault).__name__}",
        hint="check the network and AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL)",
    )
