"""The least that takes HTTP and writes Kafka: granian RSGI, msgspec, librdkafka; no features.

The yardstick of `benchmarks/push_proxy.py`: what the server, the parser and the producer cost
before a proxy does anything for its users. A full queue answers 503 and nothing is bounded.
Configured by BARE_BOOTSTRAP, BARE_PORT, BARE_WORKERS.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from granian import Granian
from granian.constants import Interfaces

if TYPE_CHECKING:
    import asyncio

    from granian._granian import RSGIHTTPProtocol
    from granian.rsgi import Scope


class Record(msgspec.Struct):
    """One record."""

    topic: str
    data: str


class Push(msgspec.Struct):
    """A request."""

    records: list[Record]
    wait_for_send: bool = False


_decode = msgspec.json.Decoder(Push).decode
_OK = b'{"status":"ok","errors":[]}'
_FAILED = b'{"status":"error","errors":[]}'
_JSON = [("content-type", "application/json")]


class App:
    """The RSGI application of one worker."""

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._producer = Producer(
            {
                "bootstrap.servers": os.environ["BARE_BOOTSTRAP"],
                "acks": 1,
                "linger.ms": 10,
                "queue.buffering.max.kbytes": 32768,
            }
        )
        loop.call_later(0.002, self._poll)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        del loop
        self._producer.flush(30)

    def _poll(self) -> None:
        self._producer.poll(0)
        self._loop.call_later(0.002, self._poll)

    async def __rsgi__(self, scope: Scope, proto: RSGIHTTPProtocol) -> None:
        del scope
        push = _decode(await proto())
        produce = self._producer.produce
        try:
            if not push.wait_for_send:
                for record in push.records:
                    produce(record.topic, record.data)
                proto.response_bytes(200, _JSON, _OK)
                return
            waiting = []
            for record in push.records:
                future: asyncio.Future[Any] = self._loop.create_future()

                def delivered(
                    error: KafkaError | None,
                    message: Message,
                    future: asyncio.Future[Any] = future,
                ) -> None:
                    del message
                    future.set_result(error)

                produce(record.topic, record.data, on_delivery=delivered)
                waiting.append(future)
            failed = [error for error in [await future for future in waiting] if error]
            proto.response_bytes(502 if failed else 200, _JSON, _FAILED if failed else _OK)
        except BufferError:
            proto.response_bytes(503, _JSON, _FAILED)


app = App()

if __name__ == "__main__":
    Granian(
        "bare_proxy:app",
        port=int(os.environ["BARE_PORT"]),
        workers=int(os.environ.get("BARE_WORKERS", "1")),
        interface=Interfaces.RSGI,
        log_enabled=False,
        websockets=False,
    ).serve()
