"""What is wrong with a request before anybody looked at what it asks for. Follows RFC 9110 section 15.5."""

from __future__ import annotations

from engine.errors import KnarrError


class BadRequest(KnarrError):
    """Malformed HTTP: 400."""

    status = 400


class RequestTimeout(KnarrError):
    """The request did not arrive in time: 408."""

    status = 408


class TooLarge(KnarrError):
    """The body is larger than this request may have: 413."""

    status = 413


class HeadTooLarge(KnarrError):
    """The request line and headers are larger than the limit: 431."""

    status = 431


class ClientGone(Exception):
    """The client closed its connection. Not an error of ours: nobody is left to be told."""
