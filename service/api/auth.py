"""API keys: who may ask, from a watched file that holds no key, only names and digests.

    # NAME    sha256:HEX, of `printf %s "$KEY" | sha256sum`
    camera-7  sha256:...

A name may stand on several lines, so that a key is replaced by adding the new one, moving the
callers, and taking the old one out. A caller sends its key as `Authorization: Bearer KEY` or as
`X-API-Key: KEY`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.api.watched import Source, Unusable, watch
from service.errors import SettingsError
from service.settings import flag

MAX_BYTES = 256 * 1024  # about 2500 keys
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})[ \t]+sha256:([0-9A-Fa-f]{64})")
_NO_KEY = hashlib.sha256(b"").digest()  # what a forgotten variable gives: it would let everybody in
_BEARER = HTTPBearer(auto_error=False, description="An API key of this service")
_HEADER = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="The same key in a field of its own"
)


@dataclass(frozen=True, slots=True)
class Keyring:
    """keys: (name, SHA-256 of a key). As text it says the names only."""

    keys: tuple[tuple[str, bytes], ...]

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if it is not one of ours. The time it takes does not depend on
        which one it is."""
        digest = hashlib.sha256(
            key.encode("latin-1")
        ).digest()  # header fields are latin-1: this gives their bytes
        found = None
        for name, known in self.keys:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(name for name, _ in self.keys))
        return f"keys in force: {len(self.keys)} ({names})"

    __repr__ = __str__


def parse_keys(text: str) -> Keyring:
    """The file's lines; blank ones and those that begin with # count for nothing.

    Raises SettingsError that names the line, never what stands in it.
    """
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise SettingsError(
                f"line {number} must be NAME sha256:HEX, HEX being the key's SHA-256 in 64 hex "
                f"digits"
            )
        digest = bytes.fromhex(match[2])
        if digest == _NO_KEY:
            raise SettingsError(f"line {number} has the digest of an empty key")
        if digest in keys:
            raise SettingsError(f"line {number} has the digest of a line before it")
        keys[digest] = match[1]
    if not keys:
        raise SettingsError("there is no key in it")
    return Keyring(tuple((name, digest) for digest, name in keys.items()))


class ApiKeys:
    """The keys that are in force. `require` is a dependency of every route that needs one.

    path: the setting api_keys_file. on_refusal: called with a request that gets 401. Raises
    SettingsError for a file that is empty, unreadable or wrong; one that becomes so later leaves
    the keys as they were.
    """

    def __init__(self, path: Path, on_refusal: Callable[[Request], None]) -> None:
        self._source = Source(path, parse_keys, MAX_BYTES)
        found = self._source.read()
        if isinstance(found, Unusable):
            raise SettingsError(f"{flag('api_keys_file')} {path}: {found.why}")
        self._ring, self._on_refusal = found, on_refusal

    async def require(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        header: Annotated[str | None, Security(_HEADER)],
    ) -> None:
        """Note the key's name in the request's trace. Raises HTTPException (401); the body is not
        read before.

        X-API-Key counts where both are given: an ingress may use Authorization for itself.
        """
        key = header or (bearer.credentials if bearer else "")
        name = self._ring.name_of(key)
        if name is None:
            self._on_refusal(request)
            detail = (
                "The API key is not known"
                if key
                else "Send an API key, as Authorization: Bearer or as X-API-Key"
            )
            raise HTTPException(401, detail, headers={"WWW-Authenticate": 'Bearer realm="fathom"'})
        request.state.trace.caller = name

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        await watch(self._source, self._apply)

    def _apply(self, ring: Keyring) -> None:
        self._ring = ring
