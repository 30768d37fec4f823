"""API keys: who is it, and which topics may they push to.

Keys are random, so one SHA-256 of them is enough for the file; every known hash is compared, each
in constant time, so that neither a prefix nor a place in the list shows in the time it takes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Final

from kstream_agg.proxy.outcomes import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.proxy.settings import ApiKey

__all__ = ["Access", "Client", "new_key"]

_MISSING: Final = Failure(
    401, "an API key is needed: 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
)
_UNKNOWN: Final = Failure(401, "the API key is not known")
_CACHED_TOPICS: Final = 10_000


class Client:
    """Someone whose key is known, and the topics they may push to."""

    def __init__(self, key: ApiKey) -> None:
        self.name = key.name
        self._patterns = re.compile("|".join(fnmatch.translate(p) for p in key.topics) or r"(?!)")
        self._seen: dict[str, Failure | None] = {}

    def refused(self, topic: str) -> Failure | None:
        """Why they may not push to a topic; None when they may."""
        if topic in self._seen:
            return self._seen[topic]
        failure = None
        if not self._patterns.match(topic):
            failure = Failure(403, f"the API key '{self.name}' may not push to topic '{topic}'")
        if len(self._seen) < _CACHED_TOPICS:
            self._seen[topic] = failure
        return failure


class Access:
    """The known keys.

    Args:
        keys: As the settings hold them; none lets everybody in.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._clients = [(bytes.fromhex(key.hash[7:]), Client(key)) for key in keys]

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._clients

    def client(self, authorization: bytes | None, api_key: bytes | None) -> Client | Failure:
        """Whose key a request carries.

        Args:
            authorization: Its `Authorization` header.
            api_key: Its `X-API-Key` header.
        """
        key = api_key
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            key = authorization[7:].strip()
        if not key:
            return _MISSING
        digest = hashlib.sha256(key).digest()
        found: Client | None = None
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client
        return found if found is not None else _UNKNOWN


def new_key() -> tuple[str, str]:
    """A new key, and its hash as the settings take it."""
    key = secrets.token_urlsafe(32)
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
