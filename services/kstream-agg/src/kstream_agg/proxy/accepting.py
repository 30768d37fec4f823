"""Accepting connections faster than one a turn of the event loop.

libuv, below uvloop, takes one connection from the listening socket a turn. When hundreds come at
once, each turn is already full of the first ones' requests, and the last are heard after a second.
So each connection the server accepts takes a few more with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

__all__ = ["Acceptor"]

_ALONE: Final = 64
# Workers that share a listening socket leave each other some.
_SHARED: Final = 8


class Acceptor:
    """Takes what waits on the listening socket.

    Args:
        listener: The socket all workers share.
        workers: How many there are.
    """

    def __init__(self, listener: socket.socket, workers: int) -> None:
        self._listener = listener
        listener.setblocking(False)  # noqa: FBT003 - the name of the method says it
        self._batch = _ALONE if workers == 1 else _SHARED
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    def take_more(self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
        """Accept what waits, up to a batch.

        Args:
            make: Makes a connection's protocol.
            tls: What encrypts the connection; None for plain ones.
        """
        loop = asyncio.get_running_loop()
        for _ in range(self._batch):
            if self._closed:
                return
            try:
                accepted, _address = self._listener.accept()
            except OSError:  # nothing waits, or no file descriptor is left: the server tries again
                return
            accepted.setblocking(False)  # noqa: FBT003 - as above
            task = loop.create_task(self._serve(accepted, make, tls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        self._listener.close()

    @staticmethod
    async def _serve(
        accepted: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(make, accepted, ssl=tls)
        except OSError:  # the client is gone, or spoke no TLS
            accepted.close()
