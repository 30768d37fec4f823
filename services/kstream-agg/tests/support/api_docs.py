"""docs/api.md, made of the docstrings of the public API: `python api_docs.py FILE` writes it."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kstream_agg.kafka as api
from kstream_agg.kafka import sessions
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.stack.testing import LocalCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["render"]

_TARGET: Final = "make docs"
_SECTIONS: Final[dict[str, list[Any]]] = {
    "Clusters and topics": [
        api.KafkaCluster,
        api.TopicConfiguration,
        api.TopicDescription,
        api.PartitionDescription,
        api.ClusterDescription,
        api.BrokerDescription,
    ],
    "Writing": [api.Writer, api.Record, api.Delivery, api.Delivered, api.Transactions],
    "Reading": [api.Reader, api.ReceivedRecord, api.Rebalance],
    "What stands in a value": [
        api.Codec,
        api.JsonCodec,
        api.MessagePackCodec,
        api.AvroCodec,
        api.TextCodec,
        SchemaRegistry,
    ],
    "Groups": [api.ConsumerGroups, api.GroupDescription, api.GroupMember, api.PartitionLag],
    "A person's verbs": [sessions.ProducerSession, sessions.ConsumerSession, sessions.add_topic],
    "A cluster for tests": [LocalCluster],
}
# Places of their own, or told of in the text: they have no page here.
_NOT_LISTED: Final = {"Start", "TopicPartition"}
_HEAD: Final = f"""<!-- Made of the docstrings by `{_TARGET}`; change them, not this file. -->

# The Kafka API

```python
{{example}}
```

Names are imported from `kstream_agg.kafka`, where nothing else is said. Every call that waits
blocks; one with an `a` before its name is the same to be awaited. `Start` is `"earliest"`,
`"latest"`, an offset, or an aware `datetime`; `TopicPartition` is confluent-kafka's. Errors derive
from `kstream_agg.core.errors.KStreamError` and carry a `remedy`.
"""


def render() -> str:
    """The whole page.

    Raises:
        ValueError: A public name stands in no section.
    """
    listed = {item.__name__ for items in _SECTIONS.values() for item in items}
    missing = set(api.__all__) - listed - _NOT_LISTED
    if missing:
        raise ValueError(f"these are public and in no section: {sorted(missing)}")
    lines = (inspect.getdoc(api) or "").splitlines()
    code = [line[4:] for line in lines[1:] if line.startswith("    ") or not line]
    parts = [_HEAD.format(example="\n".join(code).strip())]
    for title, items in _SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_class(item) if inspect.isclass(item) else _function(item, 3) for item in items]
    return "\n".join(parts)


def _class(cls: type[Any]) -> str:
    lines = [f"### {cls.__name__}\n"]
    if cls.__module__.split(".")[1] != "kafka" or cls.__name__ not in api.__all__:
        lines.append(f"`from {cls.__module__} import {cls.__name__}`\n")
    lines.append(_text(cls))
    awaitables = []
    for name, member in _members(cls):
        if inspect.iscoroutinefunction(member):
            awaitables.append(f"`{name}`")
        elif isinstance(member, property) or not callable(member):
            lines.append(f"#### `.{name}`\n\n{_text(getattr(member, 'func', member))}")
        else:
            lines.append(_function(member, 4))
    if awaitables:
        lines.append(f"To be awaited: {', '.join(awaitables)}.\n")
    return "\n".join(lines)


def _members(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, those of our own base classes first."""
    seen = set()
    for owner in reversed(cls.__mro__):
        if not owner.__module__.startswith("kstream_agg"):
            continue
        for name, member in vars(owner).items():
            documented = inspect.isfunction(member) or isinstance(member, property)
            if hasattr(member, "func"):  # a cached property
                documented = True
            if not name.startswith("_") and documented and name not in seen:
                seen.add(name)
                yield name, member


def _function(function: Callable[..., Any], level: int) -> str:
    return f"{'#' * level} `{function.__name__}{_signature(function)}`\n\n{_text(function)}"


def _signature(function: Callable[..., Any]) -> str:
    shown, star = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in {"self", "cls"} or parameter.name.startswith("_"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        shown.append(f"{parameter.name}: {parameter.annotation}{default}")
    returned = inspect.signature(function).return_annotation
    return f"({', '.join(shown)}) -> {returned}"


def _text(item: object) -> str:
    """A docstring as Markdown: sections in italics, their entries as a list."""
    lines: list[str] = []
    listing = False
    for line in (inspect.getdoc(item) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            lines += [f"*{line}*", ""]
            listing = True
        elif listing and line.startswith("        "):
            lines[-1] += " " + line.strip()
        elif listing and line.startswith("    "):
            entry = re.sub(r"^(\w+): ", r"`\1`: ", line.strip())
            is_entry = entry != line.strip() or not lines[-1].startswith("- ")
            if is_entry:
                lines.append(f"- {entry}")
            else:
                lines[-1] += " " + entry
        else:
            listing = listing and not line
            lines.append(line)
    return _fenced("\n".join(lines)) + "\n"


def _fenced(text: str) -> str:
    """Indented examples as fenced ones, in the language that they are in."""
    return re.sub(
        r"(?:^ {4}.*\n?)+",
        lambda found: "```python\n" + inspect.cleandoc(found[0]).rstrip() + "\n```\n",
        text,
        flags=re.MULTILINE,
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
