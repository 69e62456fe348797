"""The compiled library, if this installation has it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from service.errors import BackendError
from service.native.build import LIBRARY, digest

Compiled = Callable[[ctypes.Structure], int]
MEND = "pip install -e . in Fathom's source folder, or python -m service.native.build"


def opened() -> ctypes.CDLL | None:
    """The library, or None if this installation was made without a C compiler.

    Raises BackendError, with the command that builds it anew, if it cannot be opened or was built
    from other sources than those that are here.
    """
    if not LIBRARY.exists():
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise BackendError(f"{LIBRARY} cannot be opened ({error}): {MEND}") from error
    for name in ("fathom_sources", "fathom_instructions"):
        getattr(library, name).restype = ctypes.c_char_p
    if library.fathom_sources().decode() != digest():
        raise BackendError(f"{LIBRARY} was built from other sources: {MEND}")
    return library


@cache
def function(name: str) -> Compiled | None:
    """One of the library's functions that take a structure and return a number; None where nothing
    is compiled. Raises BackendError, see `opened`."""
    library = opened()
    if library is None:
        return None
    compiled = getattr(library, name)
    compiled.restype = ctypes.c_int64
    return lambda call: int(compiled(ctypes.byref(call)))


def instructions(library: ctypes.CDLL) -> str:
    """What of this processor it uses, for people."""
    name: bytes = library.fathom_instructions()
    return name.decode()


def described() -> str:
    """Whether it is here, for the log. Raises BackendError, see `opened`."""
    library = opened()
    if library is None:
        return f"without the compiled library; with a C compiler: {MEND}"
    return f"compiled for {instructions(library)}"
