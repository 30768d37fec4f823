"""What the agg-producer is measured against: programs that drive published packages.

Their packages come from Maven Central and PyPI into the user's cache folder, beside the stack's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.errors import StackError
from kstream_agg.core.schemas import AVERAGE, RAW_TRADE
from kstream_agg.kafka.cluster import TopicConfiguration
from kstream_agg.stack.artifacts import default_cache_dir
from processes import say
from workload import cluster_of, register

if TYPE_CHECKING:
    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["KafkaStreams", "QuixStreams"]

_PEERS: Final = Path(__file__).parent / "peers"
_QUIX: Final = "quixstreams==3.28.0"
_PARTITIONS: Final = 4
_TIMEOUT_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class KafkaStreams:
    """The Kafka Streams program, compiled.

    Args:
        classpath: Of its classes and libraries.
    """

    classpath: str

    @classmethod
    def prepare(cls) -> KafkaStreams | None:
        """Fetch its libraries and compile it; None, and a sentence, where that cannot be."""
        missing = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
        if missing:
            say(f"Kafka Streams is not measured: there is no {' and no '.join(missing)} here")
            return None
        source = _PEERS / "kafka_streams"
        folder = _cache("kafka-streams", source / "pom.xml", source / "Averages.java")
        classes, libraries = folder / "classes", folder / "lib"
        if not (classes / "Averages.class").exists():
            say("fetching Kafka Streams and compiling its program")
            fetch = ("mvn", "-q", "-B", "-f", str(source / "pom.xml"))
            goal = "dependency:copy-dependencies"
            _run(*fetch, goal, f"-DoutputDirectory={libraries}")
            compiler = ("javac", "-cp", f"{libraries}/*", "-d", str(classes))
            _run(*compiler, str(source / "Averages.java"))
        return cls(f"{classes}{os.pathsep}{libraries}/*")

    def run(
        self, endpoints: StackEndpoints, folder: Path, topic: str, total: int, name: str
    ) -> dict[str, Any]:
        """Aggregate `total` records of a topic with one thread; gives what the program prints."""
        output, schema_id = _output(endpoints, topic, name)
        schemas = _write_schemas(folder)
        return _run(
            "java",
            "-Xmx1g",
            *("-cp", self.classpath, "Averages"),
            *(endpoints.bootstrap_servers, topic, output, str(total)),
            *map(str, schemas),
            *(str(schema_id), "1", str(folder / name)),
        )


@dataclass(frozen=True, slots=True)
class QuixStreams:
    """The quix-streams program, with an environment of its own.

    Args:
        python: The environment's.
    """

    python: Path

    @classmethod
    def prepare(cls) -> QuixStreams | None:
        """Make the environment; None, and a sentence, where that cannot be."""
        folder = _cache(_QUIX.replace("==", "-"))
        python = folder / "bin" / "python"
        try:
            if not (folder / "complete").exists():
                say(f"installing {_QUIX} into an environment of its own")
                _run(sys.executable, "-m", "venv", "--clear", str(folder))
                _run(str(python), "-m", "pip", "install", "--quiet", _QUIX)
                (folder / "complete").touch()
        except StackError as error:
            say(f"quix-streams is not measured: {error}")
            return None
        return cls(python)

    def run(
        self, endpoints: StackEndpoints, folder: Path, topic: str, total: int, name: str
    ) -> dict[str, Any]:
        """Aggregate `total` records of a topic; gives what the program prints."""
        output, _schema_id = _output(endpoints, topic, name)
        _raw, average = _write_schemas(folder)
        return _run(
            str(self.python),
            *("-W", "ignore", str(_PEERS / "quix_averages.py")),
            *(endpoints.bootstrap_servers, endpoints.registry_url, topic, output, str(total)),
            *(name, str(folder / name), str(average)),
        )


def _cache(name: str, *sources: Path) -> Path:
    """A folder in the user's cache; another one when the sources change."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = default_cache_dir() / "bench-peers" / (f"{name}-{digest}" if sources else name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _output(endpoints: StackEndpoints, topic: str, name: str) -> tuple[str, int]:
    """A topic of a pass's own for its results, and the id of their schema."""
    output = f"{topic}-{name}"
    configuration = TopicConfiguration(output, _PARTITIONS)
    cluster_of(endpoints).create_topics([configuration])
    return output, register(endpoints, output, AVERAGE)


def _write_schemas(folder: Path) -> tuple[Path, Path]:
    paths = folder / "raw_trade.avsc", folder / "average.avsc"
    for path, schema in zip(paths, (RAW_TRADE, AVERAGE), strict=True):
        path.write_text(json.dumps(schema), encoding="utf-8")
    return paths


def _run(*command: str) -> dict[str, Any]:
    """Run a program to its end; gives the JSON object on its last line, if it prints one."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=False, timeout=_TIMEOUT_S, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"{command[0]} has not ended in {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise StackError(f"'{' '.join(command[:6])} …' has failed")
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1][0] == "{" else {}
    return found
