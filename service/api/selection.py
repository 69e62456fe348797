"""What a request selects of an answer: its form by `Accept`, and by the query its head and more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from service.api.fields import FIELD, PREFERENCE, SEEN, weight_of
from service.api.forms import FORMS, INCLUDES, Form
from service.errors import BadHeader, BadQuery, NotAcceptable, quoted
from service.tasks import Task

Ranges: TypeAlias = dict[tuple[str, str], float]  # (type, profile or "") of Accept -> weight
# What stands between separators, which count for nothing in a quoted string (RFC 9110, 5.6.4).
_ENTRIES, _PARTS = (
    re.compile(rf'(?:[^{separator}"]|"(?:[^"\\]|\\.)*"?)*', re.DOTALL) for separator in ",;"
)


def negotiate(accept: Sequence[str]) -> Form:
    """The form that the lines of `Accept` prefer; among equals, or without a line, the first one.

    A form's weight is that of the most specific range that matches it (RFC 9110, 12.5.1). Raises
    NotAcceptable, or BadHeader for a weight that is not a number from 0 to 1.
    """
    return _preferred(tuple(accept))


@dataclass(frozen=True, slots=True)
class Query:
    """What the query of /segment adds. head: the name of the head that is answered alone."""

    include: Set[str]
    head: str | None


def parse_query(query: Sequence[tuple[str, str]], form: Form) -> Query:
    """For an answer of this form. Raises BadQuery that names the key."""
    include, heads = set[str](), list[str]()
    for key, value in query:
        if key == "head":
            heads.append(value)
        elif key != "include":
            raise BadQuery(
                f"The query has the key '{key}', but the keys are 'include' and 'head'; "
                f"the budget belongs in {FIELD}",
                key=key,
            )
        elif value not in INCLUDES:
            known = " or ".join(sorted(INCLUDES))
            raise BadQuery(f"include is '{value}', but it can only be {known}", key=key)
        elif value not in form.includes:
            raise BadQuery(
                f"include={value} adds to JSON, but the answer would be {form.media_type}", key=key
            )
        else:
            include.add(value)
    if len(heads) > 1:
        raise BadQuery("head is there twice: name one, or none for all of them", key="head")
    return Query(include, heads[0] if heads else None)


def answered(
    form: Form, head: str | None, shares: Mapping[str, float], tasks: Mapping[str, Task]
) -> list[str]:
    """The names of the heads that an answer of this form has.

    head: that of the query. shares: of the heads that are asked for, how much they matter. tasks:
    of all heads. Without a name, a form of one head has the one that matters most of those that it
    can hold. Raises BadQuery for a name that is not asked for, NotAcceptable if the form cannot
    hold what is.
    """
    if head is not None and head not in shares:
        known = " or ".join(f"'{name}'" for name in shares)
        why = f"is not asked for by {PREFERENCE}" if head in tasks else "is no head of this bundle"
        raise BadQuery(f"head is '{head[:40]}', which {why}: it can be {known}", key="head")
    asked = list(shares) if head is None else [head]
    if form.takes is None:
        return asked
    able = [name for name, task in tasks.items() if task.gives in form.takes]
    fitting = [name for name in asked if name in able]
    if not fitting:
        raise NotAcceptable(
            f"{form.media_type} cannot hold what {quoted(asked)} says: {_can(able, head, shares)}",
            heads=able,
        )
    return [max(fitting, key=shares.__getitem__)]


@lru_cache(SEEN)
def _preferred(accept: tuple[str, ...]) -> Form:
    ranges = dict(
        _range(entry) for line in accept for entry in _ENTRIES.findall(line) if entry.strip()
    )
    if not ranges:
        return FORMS[0]
    weights = [_weight(form, ranges) for form in FORMS]
    best = max(weights)
    if best <= 0:
        offered = [form.media_type for form in FORMS]
        raise NotAcceptable(f"This resource comes as {' or '.join(offered)}", offered=offered)
    return FORMS[weights.index(best)]


def _can(able: Sequence[str], head: str | None, shares: Mapping[str, float]) -> str:
    """What to change, where these heads can be in the form."""
    if not able:
        return "no head of this bundle can be in that form"
    others = "" if head is None else next((name for name in able if name in shares), "")
    way = f"ask for head={others}" if others else f"name it in {PREFERENCE}"
    return f"of this bundle's heads {quoted(able)} can be in that form; {way}"


def _range(entry: str) -> tuple[tuple[str, str], float]:
    """One media range, its profile or "", and its weight; other parameters do not matter here."""
    media, *parameters = (part.strip().lower() for part in _PARTS.findall(entry))
    profile = ""
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "profile":
            profile = value.strip().strip('"')
        if name.strip() == "q":
            if (weight := weight_of(value)) is None:
                raise BadHeader(
                    f"Accept: the weight q={value} must be from 0 to 1", header="Accept", key="q"
                )
            return (media, profile), weight
    return (media, profile), 1.0


def _weight(form: Form, ranges: Ranges) -> float:
    return next((ranges[match] for match in form.matches if match in ranges), 0.0)
