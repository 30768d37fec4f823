"""Unpacked forms of cached files: made in a folder beside, renamed when complete.

A marker inside says how many files and bytes belong there; what does not match is made again.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from typing import TYPE_CHECKING

from kstream_agg.stack.download import disk_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from kstream_agg.stack.artifacts import ArtifactCache

__all__ = [
    "export_group",
    "is_unpacked",
    "plugin_folders",
    "registry_folder",
    "unpack_all",
    "unpack_connector_plugins",
    "unpack_registry",
]

_CONVERTER_INTERFACE = "org.apache.kafka.connect.storage.Converter"
_CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"

_MARKER = ".complete"

_UNPACKED_GROUPS = ("registry", "jdbc-connector", "avro-converter")

# Drivers of other databases in the connector's bundle: unused here, and the largest of its files.
_UNUSED_DRIVERS = ("ojdbc", "mysql-connector", "mariadb-java-client", "mssql-jdbc")


def registry_folder(cache: ArtifactCache) -> Path:
    """Where the registry's programs are once they are unpacked."""
    return cache.unpacked("registry")


def plugin_folders(cache: ArtifactCache) -> tuple[Path, Path]:
    """The entries of Connect's `plugin.path` once they are unpacked."""
    return cache.unpacked("jdbc-connector"), cache.unpacked("avro-converter")


def is_unpacked(cache: ArtifactCache) -> bool:
    """Whether all that is to be unpacked stands there, whole."""
    return all(_is_complete(cache.unpacked(g)) for g in _UNPACKED_GROUPS if g in cache.groups)


def unpack_all(cache: ArtifactCache, groups: Collection[str]) -> None:
    """Unpack what these groups need; what is there and whole stays.

    Raises:
        StackError: The disk is full or the cache cannot be written.
    """
    if "registry" in groups:
        unpack_registry(cache)
    if "jdbc-connector" in groups:
        _unpack_connector(cache)
    if "avro-converter" in groups:
        _unpack_converter(cache)


def export_group(cache: ArtifactCache, group: str, folder: Path) -> Path:
    """Copy a group as it is used, unpacked where that is its form, out of the cache.

    Args:
        cache: Holds the group's files already.
        group: Which group.
        folder: Where a folder named after the group is made; what stood there is replaced.

    Returns:
        The new folder.

    Raises:
        StackError: The disk is full, or a folder cannot be written.
    """
    place = folder / group
    unpack_all(cache, (group,))
    with disk_errors(folder):
        shutil.rmtree(place, ignore_errors=True)
        if group in _UNPACKED_GROUPS:
            shutil.copytree(cache.unpacked(group), place, ignore=shutil.ignore_patterns(_MARKER))
        else:
            place.mkdir(parents=True)
            for file in cache.files(group):
                shutil.copy(file, place / file.name)
    return place


def unpack_registry(cache: ArtifactCache) -> Path:
    """The registry's program folder."""

    def fill(folder: Path) -> None:
        _extract(cache.files("registry")[0], folder)

    return _unpack(cache, "registry", fill)


def unpack_connector_plugins(cache: ArtifactCache) -> tuple[Path, Path]:
    """The two entries of Connect's `plugin.path`: the JDBC sink's and the Avro converter's."""
    return _unpack_connector(cache), _unpack_converter(cache)


def _unpack_connector(cache: ArtifactCache) -> Path:
    def fill(folder: Path) -> None:
        _extract(cache.files("jdbc-connector")[0], folder)
        for jar in folder.glob("*/*.jar"):
            if jar.name.startswith(_UNUSED_DRIVERS):
                jar.unlink()

    return _unpack(cache, "jdbc-connector", fill)


def _unpack_converter(cache: ArtifactCache) -> Path:
    def fill(folder: Path) -> None:
        plugin = folder / "avro-converter"
        plugin.mkdir()
        for jar in cache.files("avro-converter"):
            shutil.copy(jar, plugin / jar.name)
        _write_manifest(plugin / "manifest.jar")

    return _unpack(cache, "avro-converter", fill)


def _write_manifest(jar: Path) -> None:
    """What Connect finds plugins by without scanning; the converter's own jars have none."""
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr(f"META-INF/services/{_CONVERTER_INTERFACE}", f"{_CONVERTER}\n")


def _unpack(cache: ArtifactCache, group: str, fill: Callable[[Path], None]) -> Path:
    place = cache.unpacked(group)
    if _is_complete(place):
        return place
    with cache.locked(), disk_errors(place.parent):
        if _is_complete(place):
            return place
        growing = place.with_name(place.name + ".part")
        for leftover in (place, growing):
            shutil.rmtree(leftover, ignore_errors=True)
        growing.mkdir(parents=True)
        fill(growing)
        (growing / _MARKER).write_text(_census(growing), encoding="ascii")
        growing.rename(place)
    return place


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _is_complete(folder: Path) -> bool:
    try:
        marker = (folder / _MARKER).read_text(encoding="ascii")
    except OSError:
        return False
    return marker == _census(folder)


def _census(folder: Path) -> str:
    sizes = [
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != _MARKER
    ]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n"
