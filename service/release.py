"""Which version of the service this is, as metrics, spans and the protocol tell it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """The version of the installation."""
    try:
        return version("fathom")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed
