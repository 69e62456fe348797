"""Pages of other origins: those that may ask are answered by the rules of CORS; no other one can
cost a segmentation.

A page may send some forms anywhere without asking first; it just cannot read the answer. So a POST
that a browser sends for a page of another origin is refused unless the setting names that origin.
Programs that are no browsers send neither Origin nor Sec-Fetch-Site, and do not notice.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from service.errors import ForeignOrigin, SettingsError
from service.open_inference.rest import HEADER_LENGTH
from service.settings import flag

ANY = "*"
SENT = (
    *("Accept", "Authorization", "Cache-Control", "Compute-Budget", "Content-Encoding"),
    *("Content-Type", "Priority", "Task-Preference", "Value-Range", "X-API-Key", "X-Request-Id"),
    *("traceparent", "tracestate"),
    HEADER_LENGTH,
)
SHOWN = (
    *("Cache-Status", "Compute-Used", "Retry-After", "Server-Timing", "Value-Scale"),
    *("X-Request-Id", "traceparent"),
    HEADER_LENGTH,
)
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": ", ".join(SENT),
    "Access-Control-Max-Age": "600",
}
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """The origins that may ask. text: the setting cors_origins. Raises SettingsError."""

    def __init__(self, text: str = "") -> None:
        self._allowed = {_without_default_port(_checked(word)) for word in text.split()}

    def answer(self, method: str, headers: Headers) -> Response | None:
        """What answers in the app's place: a browser asks whether a page may ask.

        Raises ForeignOrigin for what a page of another origin must not cause, its question
        included.
        """
        if method == "OPTIONS" and "access-control-request-method" in headers:
            if not self._allows(headers.get("origin", "")):
                raise _foreign(headers)
            return Response(status_code=204, headers=_PREFLIGHT)
        if method not in ("GET", "HEAD", "OPTIONS") and self._is_foreign(headers):
            raise _foreign(headers)
        return None

    def add_fields(self, request: Headers, answer: MutableHeaders) -> None:
        """What lets a page of an allowed origin read an answer, errors included."""
        if not self._allowed:
            return
        if ANY not in self._allowed:
            answer.add_vary_header("Origin")
        origin = request.get("origin", "")
        if origin and self._allows(origin):
            answer["Access-Control-Allow-Origin"] = ANY if ANY in self._allowed else origin
            answer["Access-Control-Expose-Headers"] = ", ".join(SHOWN)

    def _allows(self, origin: str) -> bool:
        return bool(origin) and (ANY in self._allowed or origin.lower() in self._allowed)

    def _is_foreign(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and self._allows(origin):
            return False
        if site is not None:  # only https and localhost have it, but there it knows best
            return site not in ("same-origin", "none")
        return origin is not None and not _is_own(origin, headers)


def _foreign(headers: Headers) -> ForeignOrigin:
    origin = headers.get("origin", "another origin")[:100]
    return ForeignOrigin(
        f"Pages of {origin} may not ask this service: {flag('cors_origins')} does not name it"
    )


def _is_own(origin: str, headers: Headers) -> bool:
    """Whether it is the origin that this request was sent to, as far as proxies have not changed
    it. A page cannot set either header for a form."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    asked = {headers.get(name, "").lower() for name in ("host", "x-forwarded-host")}
    port = _DEFAULT_PORTS.get(parts.scheme, "")
    return bool(parts.netloc) and bool({parts.netloc, parts.netloc + port} & asked)


def _checked(word: str) -> str:
    if word != ANY and not _ORIGIN.fullmatch(word.lower()):
        raise SettingsError(
            f"{flag('cors_origins')}: {word!r} is no origin such as https://app.example.com; it "
            "has no path, and no slash at its end"
        )
    return word.lower()


def _without_default_port(origin: str) -> str:
    scheme = origin.partition(":")[0]
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, " "))
