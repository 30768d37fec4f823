from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from kstream_agg.core.errors import PrerequisiteError, StackError, UnavailableError
from kstream_agg.stack import doctor, download
from kstream_agg.stack.artifacts import Artifact, ArtifactCache, default_cache_dir, read_lock
from kstream_agg.stack.download import Fetcher, disk_errors
from kstream_agg.stack.unpack import unpack_connector_plugins, unpack_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


class Repository:
    """A repository on loopback that can answer badly."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.ranges = True
        self.status = 200
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                path = self.path.removeprefix("/")
                repository.requests.append((path, wanted))
                body = repository.files[path]
                if repository.status != 200:
                    self.send_error(repository.status)
                    return
                start = 0
                if wanted and repository.ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                rest, cut = body[start:], repository.cut_after
                repository.cut_after = None
                self.wfile.write(rest if cut is None else rest[:cut])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def add(self, path: str, body: bytes) -> Artifact:
        self.files[path] = body
        return Artifact(path, hashlib.sha256(body).hexdigest(), len(body))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Bar:
    """Keeps what a progress bar is told."""

    def __init__(self) -> None:
        self.files, self.size, self.done = 0, 0, 0

    def start(self, files: int, size: int) -> None:
        self.files, self.size = files, size

    def advance(self, size: int) -> None:
        self.done += size


@pytest.fixture
def repository() -> Iterator[Repository]:
    with Repository() as running:
        yield running


def fetcher(url: str) -> Fetcher:
    return Fetcher(url, pause=lambda _: None)


BODY = bytes(range(256)) * 2000


def test_lock_names_every_group_with_whole_entries() -> None:
    groups = read_lock()
    local = {"kafka", "avro-converter", "jdbc-connector", "registry", "zipkin"}
    assert set(groups) == {*local, "jmx-exporter"}
    artifacts = [artifact for group in groups.values() for artifact in group]
    assert all(len(a.sha256) == 64 and a.size > 0 and "://" not in a.path for a in artifacts)
    assert sum(a.size for a in artifacts) < 600_000_000


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"KSTREAM_CACHE_DIR": "/x/y"}, "/x/y"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/kstream-agg"),
    ],
)
def test_cache_folder(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_dir(environ) == Path(expected)


@pytest.mark.parametrize("named", [None, "~/cache"])
def test_user_without_a_home_is_told_to_name_a_cache_folder(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    with pytest.raises(PrerequisiteError, match="no home") as caught:
        default_cache_dir({"KSTREAM_CACHE_DIR": named} if named else {})
    assert "KSTREAM_CACHE_DIR" in (caught.value.remedy or "")


def test_fetches_what_is_missing_and_nothing_twice(repository: Repository, tmp_path: Path) -> None:
    lock = {"g": tuple(repository.add(f"a/{n}.jar", BODY[n:]) for n in range(20))}
    cache, bar = ArtifactCache(tmp_path, lock), Bar()
    assert cache.ensure(["g"], fetcher(repository.url), bar) == 20
    assert (bar.files, bar.size) == (20, sum(a.size for a in lock["g"]))
    assert bar.done == bar.size
    assert [path.read_bytes() for path in cache.files("g")] == [BODY[n:] for n in range(20)]
    repository.requests.clear()
    assert cache.ensure(["g"], fetcher(repository.url)) == 0
    assert repository.requests == []


def test_warm_start_needs_no_network(repository: Repository, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})
    cache.ensure(["g"], fetcher(repository.url))
    with closed_port() as port:
        assert cache.ensure(["g"], fetcher(f"http://127.0.0.1:{port}")) == 0


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as sock:  # bound, but not listening: connections are refused
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_unreachable_repository_is_one_sentence(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, {"g": (Artifact("a/b.jar", "0" * 64, 5),)})
    with closed_port() as port, pytest.raises(UnavailableError, match=r"b\.jar cannot be fetched"):
        cache.ensure(["g"], fetcher(f"http://127.0.0.1:{port}"))


def test_answer_that_cannot_pass_is_not_asked_again(repository: Repository, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})
    repository.status = 404
    with pytest.raises(UnavailableError, match="answers 404"):
        cache.ensure(["g"], fetcher(repository.url))
    assert len(repository.requests) == 1


@pytest.mark.parametrize("damage", [b"short", BODY[:-1] + b"!"])
def test_damaged_file_is_fetched_again(
    repository: Repository, tmp_path: Path, damage: bytes
) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})
    cache.ensure(["g"], fetcher(repository.url))
    cache.files("g")[0].write_bytes(damage)
    assert cache.ensure(["g"], fetcher(repository.url)) == 1
    assert cache.files("g")[0].read_bytes() == BODY


def test_cut_download_goes_on_where_it_stopped(repository: Repository, tmp_path: Path) -> None:
    cache, bar = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)}), Bar()
    repository.cut_after = 300_000  # whole chunks of 256 KiB are kept
    cache.ensure(["g"], fetcher(repository.url), bar)
    assert [wanted for _, wanted in repository.requests] == [None, "bytes=262144-"]
    assert cache.files("g")[0].read_bytes() == BODY
    assert bar.done == len(BODY)


def test_part_of_an_earlier_run_is_used(repository: Repository, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})
    part = cache.files("g")[0].with_name("a.jar.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1000])
    cache.ensure(["g"], fetcher(repository.url))
    assert repository.requests == [("a.jar", "bytes=1000-")]
    assert cache.files("g")[0].read_bytes() == BODY
    assert not part.exists()


def test_server_without_ranges_sends_all_again(repository: Repository, tmp_path: Path) -> None:
    cache, bar = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)}), Bar()
    repository.ranges = False
    repository.cut_after = 1000
    cache.ensure(["g"], fetcher(repository.url), bar)
    assert cache.files("g")[0].read_bytes() == BODY
    assert bar.done == len(BODY)


def test_bad_part_is_thrown_away(repository: Repository, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})
    part = cache.files("g")[0].with_name("a.jar.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * 1000)
    cache.ensure(["g"], fetcher(repository.url))
    assert cache.files("g")[0].read_bytes() == BODY


def test_file_other_than_locked_is_refused(repository: Repository, tmp_path: Path) -> None:
    artifact = repository.add("a.jar", BODY)
    repository.files["a.jar"] = BODY[::-1]
    cache = ArtifactCache(tmp_path, {"g": (artifact,)})
    with pytest.raises(StackError, match="not the file the lock names"):
        cache.ensure(["g"], fetcher(repository.url))
    assert not cache.files("g")[0].exists()


def test_full_disk_is_one_sentence_and_keeps_what_came(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArtifactCache(tmp_path, {"g": (repository.add("a.jar", BODY),)})

    def full(*args: object) -> bool:
        del args
        with disk_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_take", full)
    with pytest.raises(StackError, match="is full") as caught:
        cache.ensure(["g"], fetcher(repository.url))
    assert caught.value.remedy is not None
    assert cache.files("g")[0].with_name("a.jar.part").read_bytes() == BODY


def test_two_checkouts_fetch_once(repository: Repository, tmp_path: Path) -> None:
    lock = {"g": (repository.add("a.jar", BODY),)}
    caches = [ArtifactCache(tmp_path, lock) for _ in range(4)]
    threads = [
        threading.Thread(target=cache.ensure, args=(["g"], fetcher(repository.url)))
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(repository.requests) == 1


def archive(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        for name, body in files.items():
            source = path.with_name("member")
            source.write_bytes(body)
            tar.add(source, name)
    return path.read_bytes()


def test_unpacked_form_is_made_once_and_again_when_damaged(
    repository: Repository, tmp_path: Path
) -> None:
    body = archive(tmp_path / "r.tar.gz", {"quarkus-run.jar": b"run", "lib/a.jar": b"lib"})
    cache = ArtifactCache(tmp_path / "cache", {"registry": (repository.add("r.tar.gz", body),)})
    cache.ensure(["registry"], fetcher(repository.url))
    folder = unpack_registry(cache)
    assert (folder / "quarkus-run.jar").read_bytes() == b"run"
    made = (folder / "lib" / "a.jar").stat().st_ino
    assert unpack_registry(cache) == folder
    assert (folder / "lib" / "a.jar").stat().st_ino == made
    (folder / "quarkus-run.jar").unlink()
    assert (unpack_registry(cache) / "quarkus-run.jar").read_bytes() == b"run"


def test_whole_cache_may_be_read_only(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = archive(tmp_path / "r.tar.gz", {"quarkus-run.jar": b"run"})
    cache = ArtifactCache(tmp_path / "cache", {"registry": (repository.add("r.tar.gz", body),)})
    data = tmp_path / "data"
    # Root may write everywhere: the answer for everybody else is put in its place.
    monkeypatch.setattr("kstream_agg.stack.doctor.os.access", lambda path, _: path == tmp_path)
    for limit in ("_MEMORY_MB", "_DATA_MB", "_UNPACKED_MB"):  # whatever this machine has
        monkeypatch.setattr(doctor, limit, 0)
    cache.ensure(["registry"], fetcher(repository.url))
    with pytest.raises(PrerequisiteError, match="cache cannot be written"):
        doctor.refuse_lack(cache, data)  # it is still to be unpacked
    folder = unpack_registry(cache)
    doctor.refuse_lack(cache, data)
    (cache.folder / ".lock").unlink()
    assert cache.ensure(["registry"], fetcher(repository.url)) == 0
    assert unpack_registry(cache) == folder
    assert not (cache.folder / ".lock").exists()


def test_connector_loses_other_databases_drivers_and_converter_gets_a_manifest(
    repository: Repository, tmp_path: Path
) -> None:
    names = ["ojdbc11-1.jar", "mysql-connector-j-9.jar", "postgresql-42.jar", "hibernate.jar"]
    body = archive(tmp_path / "c.tar.gz", {f"jdbc/{name}": b"jar" for name in names})
    lock = {
        "jdbc-connector": (repository.add("c.tar.gz", body),),
        "avro-converter": (repository.add("avro.jar", b"jar"),),
    }
    cache = ArtifactCache(tmp_path / "cache", lock)
    cache.ensure(lock, fetcher(repository.url))
    connector, converter = unpack_connector_plugins(cache)
    assert {path.name for path in connector.glob("*/*")} == {"postgresql-42.jar", "hibernate.jar"}
    assert {path.name for path in converter.glob("*/*")} == {"avro.jar", "manifest.jar"}
