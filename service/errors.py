"""Every error that a caller can get. Each class has its HTTP status and problem type (RFC 9457).

FathomError 500
├── BundleError               at start: the folder cannot be served
├── SettingsError             at start: a flag or variable is wrong
├── BackendError              at start: the chosen backend cannot run here
├── BadHeader 400             a header field cannot be understood
├── BadBudget 400             a key of a budget cannot be understood
├── BadPreference 400         a weight of a head cannot be understood
├── BadQuery 400
├── BadInference 400          an inference request of the Open Inference Protocol
├── ForeignOrigin 403         a page of an origin that is not allowed
├── NotAcceptable 406
├── RequestTimeout 408        the body came to a halt
├── TooLarge 413              bytes, pixels or sides over the limit
├── UnsupportedMediaType 415
├── UndecodableImage 422
├── UnsatisfiableBudget 422   no plan is under the ceilings, or a strict floor is out of reach
├── Overloaded 429            the queue is full, or the deadline cannot be met (Retry-After)
├── NotReady 503              starting or draining (Retry-After)
└── DeadlineExceeded 504      the deadline passed while running, or leaves no time for a plan
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any


class FathomError(Exception):
    """The base. `detail` (the message) names what to change; `title` and `status` are the class's.

    retry_after: seconds after which a retry has a chance, for statuses with `Retry-After`.
    extra: further members of the problem document, from a closed set per class.
    shed: full, predicted, expired or draining if the request was refused to protect the others;
        else empty.
    """

    status = 500
    problem = "internal"
    title = "Internal error"

    def __init__(
        self, detail: str, *, retry_after: float | None = None, shed: str = "", **extra: object
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.shed = shed
        self.extra = extra

    @property
    def retry_after_s(self) -> int | None:
        """The value of `Retry-After`: whole seconds, at least one."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))


def shown(text: object) -> str:
    """What a stranger wrote, quoted and short enough for a message."""
    return repr(str(text)[:40])


def quoted(names: Iterable[str]) -> str:
    """Names in a row, for a message."""
    return ", ".join(f"'{name}'" for name in names)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question for a message about an unknown name, if a known one is near; else empty."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


class BundleError(FathomError):
    title = "The bundle cannot be served"


class SettingsError(FathomError):
    title = "A setting is wrong"


class BackendError(FathomError):
    title = "The backend cannot run here"


class BadHeader(FathomError):
    status, problem, title = 400, "bad-header", "A header field cannot be understood"


class BadBudget(FathomError):
    """A wrong key of a budget, for every transport; `extra` has the key."""

    status, problem, title = 400, "bad-budget", "A budget cannot be understood"


class BadPreference(FathomError):
    """A wrong head or weight, for every transport; `extra` has the key."""

    status, problem, title = 400, "bad-preference", "A preference cannot be understood"


class BadQuery(FathomError):
    status, problem, title = 400, "bad-query", "A query parameter cannot be understood"


class BadInference(FathomError):
    status, problem, title = 400, "bad-inference", "An inference request cannot be understood"


class ForeignOrigin(FathomError):
    status, problem, title = 403, "foreign-origin", "Pages of this origin may not ask"


class NotAcceptable(FathomError):
    status, problem, title = 406, "not-acceptable", "None of the accepted media types is offered"


class RequestTimeout(FathomError):
    status, problem, title = 408, "request-timeout", "The request did not arrive in time"


class TooLarge(FathomError):
    status, problem, title = 413, "too-large", "The image is over a limit"


class UnsupportedMediaType(FathomError):
    status, problem, title = 415, "unsupported-media-type", "The media type is not supported"


class UndecodableImage(FathomError):
    status, problem, title = 422, "undecodable-image", "The image cannot be decoded"


class UnsatisfiableBudget(FathomError):
    status, problem, title = 422, "unsatisfiable-budget", "No plan satisfies the budget"


class Overloaded(FathomError):
    status, problem, title = 429, "overloaded", "The service is saturated"


class NotReady(FathomError):
    status, problem, title = 503, "not-ready", "The service is starting or draining"


class DeadlineExceeded(FathomError):
    """plan: the name of the plan that the time left was too short for, if that was seen before it
    ran."""

    status, problem, title = 504, "deadline-exceeded", "The deadline passed"

    def __init__(self, detail: str, *, plan: str = "", **more: Any) -> None:
        super().__init__(detail, **more)
        self.plan = plan
