"""API keys, from a watched file with names and digests but no keys.

    # NAME    sha256:HEX, of `printf %s "$KEY" | sha256sum`
    camera-7  sha256:...

A name may have several lines. So a key is replaced by adding the new one, moving the callers, and
removing the old one. A caller sends its key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`.
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
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.api.watched import Source, Unusable, watch
from service.errors import SettingsError
from service.settings import flag

MAX_BYTES = 256 * 1024  # about 2500 keys
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})[ \t]+sha256:([0-9A-Fa-f]{64})")
# The digest of an unset variable in the command above; it would let everybody in.
_NO_KEY = hashlib.sha256(b"").digest()
_BEARER = HTTPBearer(auto_error=False, description="An API key of this service")
_HEADER = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="The same key in a field of its own"
)


class UnknownKeyError(Exception):
    """A request has no key that is in force. Its text is for the caller."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The known keys. keys: (name, SHA-256 of a key). Its text has only the names."""

    keys: tuple[tuple[str, bytes], ...]

    def name_of(self, key: str) -> str | None:
        """The name of a key; None if it is unknown. The time does not depend on the key."""
        # Header fields were decoded as latin-1: this restores their bytes.
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        owner = None
        for name, known_digest in self.keys:
            if hmac.compare_digest(digest, known_digest):
                owner = name
        return owner

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(name for name, _ in self.keys))
        return f"keys in force: {len(self.keys)} ({names})"

    __repr__ = __str__


def parse_keys(text: str) -> Keyring:
    """The keys of the file's lines; blank lines and those that begin with # are ignored.

    Raises SettingsError with the number of the line, never its content.
    """
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise SettingsError(
                f"line {number} must be NAME sha256:HEX, with the key's SHA-256 in 64 hex digits"
            )
        digest = bytes.fromhex(match[2])
        if digest == _NO_KEY:
            raise SettingsError(f"line {number} has the digest of an empty key")
        if digest in keys:
            raise SettingsError(f"line {number} has the digest of a line before it")
        keys[digest] = match[1]
    if not keys:
        raise SettingsError("it has no keys")
    return Keyring(tuple((name, digest) for digest, name in keys.items()))


class ApiKeys:
    """The keys in force. `require` is a dependency of every route that needs one.

    path: the setting api_keys_file. on_refusal: called with a request that gets 401. Raises
    SettingsError for a file that is empty, unreadable or wrong. If it becomes so later, the last
    keys stay in force.
    """

    def __init__(self, path: Path, on_refusal: Callable[[Request], None]) -> None:
        self._source = Source(path, parse_keys, MAX_BYTES)
        keyring = self._source.read()
        if isinstance(keyring, Unusable):
            raise SettingsError(f"{flag('api_keys_file')} {path}: {keyring.why}")
        self._keyring, self._on_refusal = keyring, on_refusal

    def caller(self, headers: Headers) -> str:
        """The name of a request's key. Raises UnknownKeyError.

        X-API-Key counts if both fields are there: an ingress may use Authorization for itself.
        Several values of the field that counts are no key.
        """
        field = "X-API-Key" if headers.get("X-API-Key") else "Authorization"
        values = headers.getlist(field)
        if len(set(values)) > 1:
            raise UnknownKeyError(f"{field} is there with several values: send one")
        key = values[0] if values else ""
        if field == "Authorization":
            scheme, _, rest = key.partition(" ")
            key = rest.strip() if scheme.lower() == "bearer" else ""
        if not key:
            raise UnknownKeyError("Send an API key, as Authorization: Bearer or as X-API-Key")
        if (name := self._keyring.name_of(key)) is None:
            raise UnknownKeyError("The API key is not known")
        return name

    async def require(
        self,
        request: Request,
        _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        _header: Annotated[str | None, Security(_HEADER)],
    ) -> None:
        """Note the key's name in the request's trace, before the body is read. Raises HTTPException
        (401)."""
        try:
            request.state.trace.caller = self.caller(request.headers)
        except UnknownKeyError as error:
            self._on_refusal(request)
            fields = {"WWW-Authenticate": 'Bearer realm="fathom"'}
            raise HTTPException(401, str(error), headers=fields) from error

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        await watch(self._source, self._apply)

    def _apply(self, keyring: Keyring) -> None:
        self._keyring = keyring
