"""The schema registry, through its Confluent-compatible API."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from kstream_agg.core.errors import ContractError, SchemaIncompatibleError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import value_subject
from kstream_agg.core.settings import read_secret

if TYPE_CHECKING:
    import threading
    from types import TracebackType
    from typing import Self

    from kstream_agg.core.settings import RegistrySettings

__all__ = ["SchemaRegistry"]

_log = get_logger(__name__)
_SUBJECT_OR_SCHEMA_MISSING = 404
_CONFLICT = 409
# Registries count their schemas up from 1: what is far above those that are known is no id, but
# bytes that look like one.
_PLAUSIBLE_AHEAD = 1_000


class SchemaRegistry:
    """Registers and fetches schemas; a context manager that closes its connections.

    Args:
        settings: Where the registry is and how to reach it.
        doubt_s: For so long "no such schema" is not believed of an id that may well be one: a
            registry that has just started answers before it has read all that it knows.
    """

    def __init__(self, settings: RegistrySettings, *, doubt_s: float = 0.0) -> None:
        self._url = settings.url
        self._doubt_s = doubt_s
        self._missing_since: dict[int, float] = {}
        self._highest_id = 0
        # Without a timeout the client waits for ever on a request that is never answered.
        # Who calls us repeats what fails, and says so; the client would do it in silence.
        config: dict[str, Any] = {
            "url": settings.url,
            "timeout": settings.timeout_s,
            "max.retries": 0,
        }
        password = read_secret(settings.password, settings.password_file)
        if settings.username is not None:
            config["basic.auth.user.info"] = f"{settings.username}:{password or ''}"
        if settings.ca_location is not None:
            config["ssl.ca.location"] = str(settings.ca_location)
        self._client = SchemaRegistryClient(config)
        self._by_id: dict[int, dict[str, Any] | None] = {}

    def wait(self, stop: threading.Event) -> bool:
        """Wait until the registry answers.

        Returns:
            True when it answers, False when `stop` ended the wait.
        """
        told = False
        while not stop.is_set():
            try:
                self._client.get_subjects()
            except Exception as error:  # noqa: BLE001 - whatever the client raises here, it does not answer
                if not told:
                    _log.warning("waiting for the schema registry", url=self._url, error=str(error))
                    told = True
                stop.wait(0.5)
            else:
                return True
        return False

    def register_value(self, topic: str, schema: dict[str, Any]) -> int:
        """Register the schema of a topic's values under BACKWARD compatibility.

        Args:
            topic: The topic; the subject is `{topic}-value`.
            schema: A parsed Avro schema.

        Returns:
            The schema's id in the registry; the same one when it is registered already.

        Raises:
            SchemaIncompatibleError: The registry refuses it; the message names the fields.
            UnavailableError: The registry does not answer.
        """
        subject = value_subject(topic)
        try:
            self._require_backward(subject)
            found = int(self._client.register_schema(subject, Schema(json.dumps(schema), "AVRO")))
        except SchemaRegistryError as error:
            if error.http_status_code in {409, 422}:
                raise self._incompatible(subject, schema, error) from error
            raise self._failure(error) from error
        except Exception as error:
            raise self._failure(error) from error
        self._highest_id = max(self._highest_id, found)
        return found

    def _require_backward(self, subject: str) -> None:
        try:
            self._client.set_compatibility(subject_name=subject, level="BACKWARD")
        except SchemaRegistryError as error:
            # Another service that starts at the same moment has just set it.
            if error.http_status_code != _CONFLICT:
                raise

    def schema_by_id(self, schema_id: int) -> dict[str, Any] | None:
        """The schema with this id, from memory when it was asked for before.

        Returns:
            The parsed schema; None when the registry knows no such id.

        Raises:
            UnavailableError: The registry does not answer, or its "no" is not believed yet.
        """
        if schema_id in self._by_id:
            return self._by_id[schema_id]
        try:
            found = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == _SUBJECT_OR_SCHEMA_MISSING:
                self._doubt(schema_id)
                return None
            raise self._failure(error) from error
        except Exception as error:
            raise self._failure(error) from error
        parsed: dict[str, Any] = json.loads(found.schema_str or "null")
        self._by_id[schema_id] = parsed
        self._highest_id = max(self._highest_id, schema_id)
        return parsed

    def latest(self, subject: str) -> tuple[int, dict[str, Any]] | None:
        """A subject's newest schema and its id; None when the registry knows no such subject.

        Raises:
            UnavailableError: The registry does not answer.
        """
        try:
            found = self._client.get_latest_version(subject)
        except SchemaRegistryError as error:
            if error.http_status_code == _SUBJECT_OR_SCHEMA_MISSING:
                return None
            raise self._failure(error) from error
        except Exception as error:
            raise self._failure(error) from error
        parsed: dict[str, Any] = json.loads(found.schema.schema_str or "null")
        return int(found.schema_id or 0), parsed

    def _doubt(self, schema_id: int) -> None:
        """Refuse to believe that there is no such schema, for a while."""
        if not 0 < schema_id <= self._highest_id + _PLAUSIBLE_AHEAD:
            return
        now = time.monotonic()
        if now - self._missing_since.setdefault(schema_id, now) < self._doubt_s:
            raise UnavailableError(
                f"the schema registry at {self._url} knows no schema {schema_id} yet",
                remedy="was it started just now, or the schema deleted?",
            )

    def close(self) -> None:
        """Close the connections to the registry."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _incompatible(
        self, subject: str, schema: dict[str, Any], error: SchemaRegistryError
    ) -> SchemaIncompatibleError:
        try:
            latest = self._client.get_latest_version(subject).schema
            differences = _differences(json.loads(latest.schema_str or "{}"), schema)
        except Exception:  # noqa: BLE001 - whatever the client raises: the refusal itself is known
            differences = []
        differences = differences or [error.error_message]
        return SchemaIncompatibleError(
            f"the registry refuses the schema of '{subject}' as not backward compatible: "
            + "; ".join(differences),
            remedy="new fields need a type with null and the default null; existing fields keep "
            "their type",
        )

    def _failure(self, error: Exception) -> UnavailableError | ContractError:
        if isinstance(error, SchemaRegistryError) and error.http_status_code < 500:
            return ContractError(f"the schema registry at {self._url} refuses: {error}")
        return UnavailableError(
            f"the schema registry at {self._url} does not answer: {error}",
            remedy="is it running, and registry.url right?",
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of a record schema makes a reader with `new` fail on data written with `old`."""
    old_fields = {field["name"]: field for field in old.get("fields", ())}
    found = []
    for field in new.get("fields", ()):
        name = field["name"]
        before = old_fields.get(name)
        if before is None and "default" not in field:
            found.append(f"field '{name}' is new and has no default")
        elif before is not None and before["type"] != field["type"]:
            found.append(
                f"field '{name}' was {json.dumps(before['type'])} and would be "
                f"{json.dumps(field['type'])}"
            )
    return found
