"""The exception tree.

    KStreamError                  anything this package raises on purpose
    ├── SettingsError             a setting is wrong: names key, place and allowed values
    ├── UnavailableError          something we need does not answer (yet); trying again can help
    ├── ContractError             what we found contradicts what we were told
    │   ├── SchemaIncompatibleError   the registry refuses a schema; names the field
    │   ├── TopicMismatchError    a topic has other partitions than what reads it needs
    │   └── ChannelRefusedError   the exchange left out channels we asked for
    ├── DeliveryError             Kafka did not take a record, and will not
    ├── CommitUncertainError      a transaction failed or may have: its work is done again
    ├── FencedError               another worker has taken this one's place
    ├── InvalidRecordError        one record is bad; carries what the dead-letter topic needs
    ├── RecordsRefusedError       some records of a batch are bad, the rest of it is done with
    ├── PipelineError             a pipeline is put together in a way that cannot run
    ├── ErrorLimitError           more records failed than a pipeline allows
    ├── PrerequisiteError         this machine lacks something; carries the remedy
    └── StackError                the local stack cannot do what was asked

Foreign exceptions are turned into these where they enter (`raise … from`). The command line
prints a `KStreamError` as one sentence and its remedy, never as a traceback; at log level
`debug` operators get the traceback too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ChannelRefusedError",
    "CommitUncertainError",
    "ContractError",
    "DeliveryError",
    "ErrorLimitError",
    "FencedError",
    "InvalidRecordError",
    "KStreamError",
    "PipelineError",
    "PrerequisiteError",
    "RecordsRefusedError",
    "SchemaIncompatibleError",
    "SettingsError",
    "StackError",
    "TopicMismatchError",
    "UnavailableError",
]


class KStreamError(Exception):
    """Base of all errors of this package.

    Args:
        message: One sentence for the person who reads it.
        remedy: What they can do about it, if anything is known.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class SettingsError(KStreamError):
    """A setting is wrong; the message names the key, where it stands and what is allowed."""

    exit_code = 2


class UnavailableError(KStreamError):
    """Something needed does not answer; trying again can help."""


class ContractError(KStreamError):
    """What was found contradicts what was agreed; trying again does not help."""


class SchemaIncompatibleError(ContractError):
    """The registry refuses a schema as incompatible; the message names the field."""


class TopicMismatchError(ContractError):
    """A topic exists with other partitions than needed; the message says how many."""


class ChannelRefusedError(ContractError):
    """The exchange left channels out of its acknowledgement; the message names them."""


class DeliveryError(KStreamError):
    """Kafka did not take a record and librdkafka has given up on it."""


class CommitUncertainError(KStreamError):
    """A transaction failed, or nobody knows: what it holds is to be done again from its begin."""


class FencedError(KStreamError):
    """Another worker has taken this one's place: it must write nothing any more."""


class InvalidRecordError(KStreamError):
    """One record cannot be processed; its neighbours can.

    Args:
        message: Why, in one sentence.
        stage: Where it was found (`decode`, `validate`, `encode`, …): a dead-letter header.
    """

    def __init__(self, message: str, *, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class RecordsRefusedError(KStreamError):
    """A step has done its work for a batch but for some records.

    Args:
        message: How many, and why the first.
        failed: Place among the batch's records to what is wrong with it.
    """

    def __init__(self, message: str, *, failed: Mapping[int, Exception]) -> None:
        super().__init__(message)
        self.failed = failed


class PipelineError(KStreamError):
    """A pipeline is put together in a way that cannot run; the message names the step."""

    exit_code = 2


class ErrorLimitError(KStreamError):
    """More records failed than a pipeline allows; none behind the limit is committed.

    Args:
        message: The limit, and the failure that reached it.
        failed: Records that failed since the start.
        seen: Records taken since the start.
    """

    exit_code = 3

    def __init__(self, message: str, *, failed: int, seen: int) -> None:
        super().__init__(message, remedy="the records are read again after a restart")
        self.failed = failed
        self.seen = seen


class PrerequisiteError(KStreamError):
    """This machine lacks something; `remedy` says how to get it."""

    exit_code = 2


class StackError(KStreamError):
    """The local stack cannot do what was asked."""
