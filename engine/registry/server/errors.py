"""The errors of the registry API: one class, with the code, the HTTP status and the JSON body of each. Pure.

Follows the OCI distribution specification, "Error Codes"; the sentences are those of Docker's registry, which clients show and match.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import KnarrError

# code -> (status, message)
_CODES: dict[str, tuple[int, str]] = {
    "BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "BLOB_UPLOAD_INVALID": (400, "blob upload invalid"),
    "BLOB_UPLOAD_UNKNOWN": (404, "blob upload unknown to registry"),
    "DENIED": (403, "requested access to the resource is denied"),
    "DIGEST_INVALID": (400, "provided digest did not match uploaded content"),
    "MANIFEST_BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "MANIFEST_INVALID": (400, "manifest invalid"),
    "MANIFEST_UNKNOWN": (404, "manifest unknown"),
    "NAME_INVALID": (400, "invalid repository name"),
    "NAME_UNKNOWN": (404, "repository name not known to registry"),
    "PAGINATION_NUMBER_INVALID": (400, "invalid number of results requested"),
    "RANGE_INVALID": (416, "invalid content range"),
    "SIZE_INVALID": (400, "provided length did not match content length"),
    "TAG_INVALID": (400, "manifest tag did not match URI"),
    "TOOMANYREQUESTS": (429, "too many requests"),
    "UNAUTHORIZED": (401, "authentication required"),
    "UNAVAILABLE": (503, "service unavailable"),
    "UNKNOWN": (500, "unknown error"),
    "UNSUPPORTED": (405, "The operation is unsupported."),
}


class RegistryError(KnarrError):
    """An error with its code. `detail` is any JSON value, `fields` further header lines of the reply, each ended by CRLF."""

    def __init__(self, code: str, detail: Any = None, *, message: str = "", status: int = 0, fields: bytes = b"") -> None:
        usual_status, usual_message = _CODES[code]
        super().__init__(message or usual_message)
        self.code = code
        self.detail = detail
        self.status = status or usual_status
        self.fields = fields

    def body(self) -> bytes:
        """The JSON document of the reply."""
        error = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return msgspec.json.encode({"errors": [error]}) + b"\n"


class ManifestErrors(RegistryError):
    """Several blobs or manifests that a manifest names and its repository does not have."""

    def __init__(self, digests: list[str]) -> None:
        super().__init__("MANIFEST_BLOB_UNKNOWN")
        self._digests = digests

    def body(self) -> bytes:
        """One error for each of them."""
        errors = [{"code": self.code, "message": self.message, "detail": {"digest": digest}} for digest in self._digests]
        return msgspec.json.encode({"errors": errors}) + b"\n"
