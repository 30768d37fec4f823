"""Postgres 18: the database that the sinks write to."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import psutil
import psycopg
from psycopg import sql

from kstream_agg.core.errors import StackError, UnavailableError
from kstream_agg.stack.accounts import hand_over, server_account
from kstream_agg.stack.component import Component
from kstream_agg.stack.java import plain_environment
from kstream_agg.stack.layout import make_private
from kstream_agg.stack.process import launch_command
from kstream_agg.stack.programs import find_postgres

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kstream_agg.stack.component import Account
    from kstream_agg.stack.context import StackContext

__all__ = ["DATABASE", "USER", "postgres_component", "postgres_password"]

USER = "kstream"
DATABASE = "raw"


def postgres_component(context: StackContext) -> Component:
    """The server: TCP on loopback only, no Unix socket, password for everyone."""
    port = context.ports.postgres
    home = context.layout.home("postgres")
    data = home / "data"
    program = find_postgres()
    account = server_account(home, program)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        # A socket's path has room for 107 bytes, a checkout's may be longer; nobody needs one.
        "unix_socket_directories": "",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "shared_buffers": "128MB",
        "max_connections": 50,
        "log_checkpoints": "off",
    }
    settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]

    def prepare() -> None:
        if not data.exists():
            _make_cluster(home, account, postgres_password(context))
        _remove_stale_lock(data)

    return Component(
        name="postgres",
        argv=(str(program), "-D", str(data), *settings),
        probe=_probe(context),
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={"postgres": port},
        prepare=prepare,
        initialise=lambda: _create_database(context),
        # Fast shutdown: sessions are ended, everything is written.
        stop_signal=signal.SIGINT,
        stop_group=3,
        account=account,
        address=f"postgresql://{USER}@127.0.0.1:{port}/{DATABASE}",
    )


def postgres_password(context: StackContext) -> str:
    """The password of the database's user, made when there is none yet."""
    path = context.layout.postgres_password
    if not path.exists():
        new = path.with_name(path.name + ".new")
        _write_secret(new, secrets.token_urlsafe(18))
        new.replace(path)
    return path.read_text(encoding="ascii").strip()


def _write_secret(path: Path, secret: str) -> None:
    """Write a file that never was readable by others, not even empty or for a moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret)


def _make_cluster(home: Path, account: Account | None, password: str) -> None:
    """`initdb`, in a folder beside that is renamed when all is well."""
    growing = home / "data.part"
    shutil.rmtree(growing, ignore_errors=True)
    make_private(home)
    password_file = home / "initial-password"
    _write_secret(password_file, password)
    hand_over(account, home, password_file)
    command = Component(
        name="initdb",
        argv=(
            str(find_postgres("initdb")),
            f"--pgdata={growing}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The same order of texts on every system.
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--builtin-locale=C.UTF-8",
        ),
        probe=None,
        env={},
        cwd=home,
        account=account,
    )
    try:
        done = subprocess.run(
            launch_command(command),
            env=plain_environment(),
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        password_file.unlink()
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise StackError(f"the database's files cannot be made: {' '.join(last)}")
    growing.rename(home / "data")


def _remove_stale_lock(data: Path) -> None:
    """After a reboot the number in Postgres' own lock file may be another program's."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text(encoding="ascii").split("\n", 1)[0])
    except (OSError, ValueError):
        return
    try:
        is_postgres = "postgres" in psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        is_postgres = False
    if not is_postgres:
        lock.unlink(missing_ok=True)


def _probe(context: StackContext) -> Callable[[], str | None]:
    def probe() -> str | None:
        try:
            with _connect(context, "postgres") as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            return f"no connection yet ({str(error).strip().splitlines()[-1]})"
        return None

    return probe


def _create_database(context: StackContext) -> None:
    try:
        with _connect(context, "postgres") as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if found.fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(statement.format(sql.Identifier(DATABASE), sql.Identifier(USER)))
    except psycopg.Error as error:
        raise UnavailableError(f"database '{DATABASE}' cannot be made: {error}") from error


def _connect(context: StackContext, database: str) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1",
        port=context.ports.postgres,
        user=USER,
        password=postgres_password(context),
        dbname=database,
        connect_timeout=3,
        autocommit=True,
    )
