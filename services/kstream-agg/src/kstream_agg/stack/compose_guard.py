"""Development passwords are for ports on this machine: anywhere else they are refused."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEVELOPMENT_PASSWORDS", "refuse_open_doors"]

DEVELOPMENT_PASSWORDS: Final = {
    "POSTGRES_PASSWORD": "kstream-development",
    "GRAFANA_PASSWORD": "kstream-development",
    "CLICKHOUSE_PASSWORD": "kstream-development",
}
"""What docker-compose.yml takes where the environment names no password."""

# Doors without a lock, which the compose file opens by default: variable, its safe value, what it
# opens.
_OPEN: Final = (
    ("GRAFANA_ANONYMOUS", "false", "shows Grafana to everybody"),
    ("PGADMIN_SERVER_MODE", "True", "lets everybody use pgAdmin"),
)


def refuse_open_doors(environ: Mapping[str, str]) -> str:
    """See that what may be reached from elsewhere is not protected by known passwords.

    Args:
        environ: Has `BIND_ADDRESS` and the passwords, as the compose file fills them in.

    Returns:
        A sentence that says what was found.

    Raises:
        SettingsError: Ports are bound beyond loopback, and a password is missing or is the
            development one, or a tool asks for none.
    """
    address = environ.get("BIND_ADDRESS", "").strip("[]")
    if _is_loopback(address):
        return f"ports are bound to {address}: development passwords may stand"
    for name, known in DEVELOPMENT_PASSWORDS.items():
        if environ.get(name, "") in ("", known):
            raise SettingsError(
                f"BIND_ADDRESS is {address or 'empty'}: {name} is a development password",
                remedy=f"set {name} in .env, or bind to 127.0.0.1",
            )
    for name, safe, what in _OPEN:
        if environ.get(name) != safe:
            raise SettingsError(
                f"BIND_ADDRESS is {address}: {name}={environ.get(name, '')} {what}",
                remedy=f"set {name}={safe} in .env, or bind to 127.0.0.1",
            )
    return f"ports are bound to {address}: no password is a development one"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
