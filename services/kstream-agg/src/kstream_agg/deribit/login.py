"""The exchange's login over a websocket, and when to renew it. Pure.

`public/auth` with client credentials, later with the refresh token it gave
(https://docs.deribit.com, "Authentication"). A login belongs to its connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import SecretStr

__all__ = ["Login"]

_RENEW_AT: Final = 0.8  # of a token's life: time enough to try again


class Login:
    """One connection's login.

    Args:
        client_id: As the exchange gave it.
        secret: Its secret; it stands in the request alone.
    """

    def __init__(self, client_id: str, secret: SecretStr) -> None:
        self.client_id = client_id
        self._secret = secret
        self._refresh_token: str | None = None
        self._renew_at: float | None = None

    def request(self) -> dict[str, Any]:
        """Parameters of the next `public/auth`: by refresh token where there is one."""
        self._renew_at = None
        if self._refresh_token is not None:
            return {"grant_type": "refresh_token", "refresh_token": self._refresh_token}
        return {
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self._secret.get_secret_value(),
        }

    def granted(self, result: dict[str, Any], now: float) -> None:
        """The exchange has let us in.

        Args:
            result: Of the call: `refresh_token` and `expires_in`, in seconds.
            now: Monotonic time in seconds.
        """
        token = result.get("refresh_token")
        self._refresh_token = token if isinstance(token, str) else None
        life = result.get("expires_in")
        if isinstance(life, int | float) and not isinstance(life, bool):
            self._renew_at = now + max(0.5, life * _RENEW_AT)

    def refused(self) -> bool:
        """The exchange has not; whether the client credentials can be tried instead."""
        had_token, self._refresh_token = self._refresh_token is not None, None
        return had_token

    def is_due(self, now: float) -> bool:
        """Whether the login is to be renewed."""
        return self._renew_at is not None and now >= self._renew_at
