"""ClickHouse over its HTTP interface: queries, and inserts of one block.

https://clickhouse.com/docs/interfaces/http

What a server can do differs by versions; it is asked, never guessed from the version's number.
The oldest server this is tested with is 18.16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import httpx2
from pydantic import Field, SecretStr

from kstream_agg.core.errors import ContractError, KStreamError, UnavailableError
from kstream_agg.core.settings import SettingsGroup, read_secret
from kstream_agg.sinks.clickhouse_errors import InsertRefusedError, server_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

from pathlib import Path  # noqa: TC003 - pydantic reads the annotations

__all__ = ["ClickHouse", "ClickHouseSettings", "Features", "identifier", "literal"]

_OK: Final = 200
_TOKEN: Final = "insert_deduplication_token"  # noqa: S105 - a setting's name
# Less than any server keeps an idle connection open (3 s before version 23): one that it has closed
# would fail the next insert.
_KEEP_ALIVE_S: Final = 2.0
# A server's profile may make inserts asynchronous: refused rows would then be told to nobody.
_INSERT_SETTINGS: Final = {"async_insert": "0", "wait_end_of_query": "1"}


class ClickHouseSettings(SettingsGroup):
    """`[clickhouse]`: where the server is and who writes."""

    url: str = "http://127.0.0.1:8123"
    database: str = "default"
    user: str = "default"
    password: SecretStr | None = None
    password_file: Path | None = None
    ca_location: Path | None = None
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for an answer; an insert that takes longer is sent again."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a server can do.

    Args:
        version: As it tells.
        settings: Of those this module would like to use, the ones it knows.
        milliseconds: Whether it has the type DateTime64.
        deduplicates: Whether its tables can be told to remember the tokens of inserts.
    """

    version: str
    settings: frozenset[str]
    milliseconds: bool
    deduplicates: bool


class ClickHouse:
    """A client of one server; a context manager.

    Args:
        settings: Where it is.
        data_codes: Numbers of errors that mean bad data, beside those that are known to.
    """

    def __init__(
        self, settings: ClickHouseSettings, data_codes: frozenset[int] = frozenset()
    ) -> None:
        self.database = settings.database
        self.place = f"ClickHouse at {settings.url}"
        self._data_codes = data_codes
        password = read_secret(settings.password, settings.password_file)
        headers = {"X-ClickHouse-User": settings.user}
        if password is not None:
            headers["X-ClickHouse-Key"] = password
        self._http = httpx2.Client(
            base_url=settings.url,
            timeout=settings.timeout_s,
            headers=headers,
            limits=httpx2.Limits(keepalive_expiry=_KEEP_ALIVE_S),
            verify=str(settings.ca_location) if settings.ca_location else True,
        )
        self._features: Features | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def features(self) -> Features:
        """What the server can do; asked once, and again after `forget`.

        Raises:
            UnavailableError: It does not answer.
            SettingsError: It refuses the user.
        """
        if self._features is None:
            wanted = ", ".join(map(literal, (*_INSERT_SETTINGS, _TOKEN)))
            known = self.rows(f"SELECT name FROM system.settings WHERE name IN ({wanted})")  # noqa: S608 - literals
            types = "SELECT count() FROM system.data_type_families WHERE name = 'DateTime64'"
            window = (
                "SELECT count() FROM system.merge_tree_settings"
                " WHERE name = 'non_replicated_deduplication_window'"
            )
            self._features = Features(
                version=str(self.rows("SELECT version()")[0][0]),
                settings=frozenset(str(name) for (name,) in known),
                milliseconds=int(self.rows(types)[0][0]) > 0,
                deduplicates=int(self.rows(window)[0][0]) > 0,
            )
        return self._features

    def forget(self) -> None:
        """Ask anew what the server can do: it may be another one now."""
        self._features = None

    def execute(self, statement: str) -> bytes:
        """Run a statement that is not an insert.

        Returns:
            The answer, in the format the statement names.

        Raises:
            UnavailableError: The server does not answer, or cannot do it now.
            SettingsError: It refuses the user.
            ContractError: It refuses the statement.
        """
        try:
            return self._post({"database": self.database}, statement.encode())
        except InsertRefusedError as error:
            raise ContractError(f"{self.place}: {error}") from error

    def rows(self, query: str) -> list[list[Any]]:
        """The rows of a query; whole numbers of 64 bits come as texts or numbers.

        Raises:
            KStreamError: As `execute`.
        """
        answer = self.execute(f"{query} FORMAT JSONCompact")
        try:
            found: list[list[Any]] = json.loads(answer)["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(
                f"{self.place} does not answer as ClickHouse does",
                remedy="is KSTREAM__CLICKHOUSE__URL its HTTP port (8123)?",
            ) from error
        return found

    def insert(self, statement: str, block: bytes, token: str) -> None:
        """Insert one block in the Native format: all of it or nothing.

        Args:
            statement: `INSERT INTO … FORMAT Native`.
            block: The block.
            token: Names it: an insert sent again, because its answer was lost, is done once by
                servers that know tokens.

        Raises:
            InsertRefusedError: The server refuses it.
            UnavailableError: It does not answer, or cannot do it now; the insert may be done.
            SettingsError: It refuses the user.
        """
        wanted = _INSERT_SETTINGS | {_TOKEN: token}
        known = self.features().settings
        chosen = {name: value for name, value in wanted.items() if name in known}
        answer = self._post({"database": self.database, "query": statement, **chosen}, block)
        if answer.strip():
            # A failure behind the headers: the status had been sent.
            raise server_error(self.place, _OK, {}, answer.strip(), self._data_codes)

    def _post(self, parameters: Mapping[str, str], body: bytes) -> bytes:
        try:
            answer = self._http.post("/", params=dict(parameters), content=body)
        except RuntimeError as error:
            # The service has ended, and a step of it is still at work.
            raise UnavailableError(f"the connection to {self.place} is closed") from error
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"{self.place} does not answer: {str(error) or type(error).__name__}",
                remedy="is it running, and KSTREAM__CLICKHOUSE__URL right?",
            ) from error
        if answer.status_code != _OK:
            raise self._error(answer)
        return answer.content

    def _error(self, answer: httpx2.Response) -> KStreamError:
        return server_error(
            self.place, answer.status_code, answer.headers, answer.content, self._data_codes
        )


def identifier(name: str) -> str:
    """A name as ClickHouse's SQL writes it."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def literal(text: str) -> str:
    """A text as ClickHouse's SQL writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
