"""Where the server listens, and for how many connections there are files."""

from __future__ import annotations

import resource
import socket

from service.errors import SettingsError
from service.settings import Settings, flag


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises SettingsError if the address cannot be used."""
    if settings.host in ("", "*"):  # to the resolver, the latter is this machine alone
        raise SettingsError(
            f"{flag('host')} is {settings.host!r}: it must be an address or a name. 0.0.0.0 is "
            "every address of IPv4, :: every one, of IPv6 too"
        )
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        both = settings.host == "::" and socket.has_dualstack_ipv6()  # as gRPC listens there
        return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {error}"
        ) from error


def more_files() -> None:
    """Let the process open as many files as it may: each connection is one, and beyond the limit
    new ones are reset. Shells and systemd start with 1024, for programs that use select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
