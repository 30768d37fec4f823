"""How Java components are started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kstream_agg.stack.programs import find_java

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["class_path", "java_command", "plain_environment"]


def java_command(heap_mb: int, *arguments: str) -> tuple[str, ...]:
    """A Java command line with the options that all components share.

    Args:
        heap_mb: The heap's limit in MB.
        arguments: Further options, the main class or jar and its arguments.
    """
    return (
        str(find_java()),
        f"-Xmx{heap_mb}m",
        # The serial collector has the smallest footprint on heaps of this size, and the first
        # compiler alone halves the time to ready on two cores.
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-Duser.timezone=UTC",
        "-Dfile.encoding=UTF-8",
        "-Djava.net.preferIPv4Stack=true",
        *arguments,
    )


def class_path(jars: Iterable[Path]) -> str:
    """Jars joined as Java's `-cp` wants them."""
    return os.pathsep.join(str(jar) for jar in jars)


def plain_environment() -> dict[str, str]:
    """A small environment: a user's JAVA_TOOL_OPTIONS or CLASSPATH must not change the stack."""
    kept = ("PATH", "HOME", "TMPDIR")
    # In the C locale, or none, Java cannot even name a file whose path is not ASCII.
    fixed = {"TZ": "UTC", "LC_ALL": "C.UTF-8"}
    return {name: os.environ[name] for name in kept if name in os.environ} | fixed
