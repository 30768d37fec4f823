from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil
import pytest

from kstream_agg.core.errors import PrerequisiteError, StackError
from kstream_agg.stack import control, doctor
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.component import Component
from kstream_agg.stack.doctor import examine, refuse_lack
from kstream_agg.stack.endpoints import find_running, stack_endpoints
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.logfiles import last_error, rotate_logs, tail
from kstream_agg.stack.plan import make_plan, write_plan
from kstream_agg.stack.ports import check_ports, free_ports
from kstream_agg.stack.process import ProcessLauncher, end_processes, launch_command
from kstream_agg.stack.profiles import artifact_groups, select_names
from kstream_agg.stack.settings import PortSettings, StackSettings
from kstream_agg.stack.state import (
    ComponentStatus,
    ProcessId,
    StackStatus,
    is_alive,
    process_id,
    write_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def component(name: str, process: ProcessId | None = None) -> ComponentStatus:
    return ComponentStatus(name, "ready", process, 0, "", 0.0, None, {}, "")


def stack_state(supervisor: ProcessId | None, *components: ComponentStatus) -> StackStatus:
    return StackStatus("live", supervisor, stopping=False, started_at=0.0, components=components)


def me() -> ProcessId:
    found = process_id(os.getpid())
    assert found is not None
    return found


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    monkeypatch.setenv("KSTREAM_CONFIG_DIR", str(folder))
    return folder


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


# --- the state file ------------------------------------------------------------------------


def test_folder_without_a_stack(tmp_path: Path) -> None:
    status = control.read_status(tmp_path)
    assert not status.is_running
    assert not status.is_healthy
    assert control.down(tmp_path) == []


def test_running_stack_is_recognised_by_its_process(tmp_path: Path) -> None:
    state = stack_state(me(), component("kafka", me()))
    write_state(Layout(tmp_path).state, state)
    assert control.read_status(tmp_path) == state
    assert control.read_status(tmp_path).is_healthy


def test_stale_state_names_nobody_though_the_number_is_used_again(tmp_path: Path) -> None:
    stranger = ProcessId(os.getpid(), me().create_time - 86_400)
    write_state(Layout(tmp_path).state, stack_state(stranger, component("kafka", stranger)))
    status = control.read_status(tmp_path)
    assert not status.is_running
    assert [(c.state, c.process) for c in status.components] == [("stopped", None)]
    assert control.down(tmp_path) == []


def test_damaged_state_file_is_no_stack(tmp_path: Path) -> None:
    Layout(tmp_path).state.write_text("{", encoding="ascii")
    assert not control.read_status(tmp_path).is_running


def test_second_start_is_refused_by_name(tmp_path: Path, config: Path) -> None:
    del config
    write_state(Layout(tmp_path).state, stack_state(me()))
    with pytest.raises(StackError, match=f"live stack on {tmp_path} already runs .*{os.getpid()}"):
        control.up(tmp_path, make_plan("live", StackSettings()))


def test_leftover_of_a_killed_supervisor_is_ended(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    left = process_id(sleeper.pid)
    write_state(Layout(tmp_path).state, stack_state(None, component("kafka", left)))
    assert control.down(tmp_path) == ["kafka"]
    assert left is not None
    assert not is_alive(left)


def test_unhealthy_when_one_component_is() -> None:
    state = stack_state(me(), component("kafka"), component("zipkin"))
    bad = msgspec.structs.replace(state.components[1], state="unhealthy")
    assert state.is_healthy
    assert not msgspec.structs.replace(state, components=(state.components[0], bad)).is_healthy


def test_unknown_component_is_named_with_those_there_are() -> None:
    with pytest.raises(StackError, match="no component 'kafak'") as caught:
        stack_state(me(), component("kafka")).component("kafak")
    assert caught.value.remedy == "it has: kafka"


def test_running_stack_is_found_with_its_addresses(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del config
    monkeypatch.setenv("KSTREAM_STACK_DIR", str(tmp_path))
    assert find_running() is None
    settings = StackSettings(ports=PortSettings().shifted(20_000))
    write_plan(Layout(tmp_path).plan, make_plan("live", settings, options={"channels": "a,b"}))
    write_state(Layout(tmp_path).state, stack_state(me()))
    found = find_running()
    assert found is not None
    assert found.bootstrap_servers == "127.0.0.1:29092"
    assert found.environment["KSTREAM__REGISTRY__URL"] == "http://127.0.0.1:28081/apis/ccompat/v7"
    assert found.environment["KSTREAM__CHANNELS"] == "a,b"
    ports = settings.ports.model_dump()
    assert found == stack_endpoints(Layout(tmp_path), ports, {"channels": "a,b"})


# --- profiles ------------------------------------------------------------------------------


def test_profiles() -> None:
    base = set(select_names("base"))
    assert base == {"kafka", "schema-registry", "connect", "postgres", "zipkin"}
    assert set(select_names("live")) - base == {
        "connectors",
        "connectors-watch",
        "raw-producer",
        "agg-producer",
    }
    assert set(select_names("demo")) - set(select_names("live")) == {"deribit-simulator"}


def test_only_some_components() -> None:
    assert select_names("base", ("schema-registry", "kafka")) == ("kafka", "schema-registry")
    with pytest.raises(StackError, match="no component 'mysql'"):
        select_names("base", ("mysql",))
    assert artifact_groups(("kafka", "connect")) == ("kafka", "jdbc-connector", "avro-converter")
    assert artifact_groups(("postgres",)) == ()


# --- ports ---------------------------------------------------------------------------------


def listening(name: str, ports: dict[str, int]) -> Component:
    return Component(name=name, argv=(), probe=None, env={}, cwd=Path("/"), ports=ports)


def test_taken_port_is_named_with_component_and_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        program = psutil.Process().name()
        with pytest.raises(StackError) as caught:
            check_ports([listening("zipkin", {"zipkin": port})])
    assert str(caught.value) == (
        f"port {port} of zipkin ([ports] zipkin) is taken by {program} (pid {os.getpid()})"
    )


def test_taken_port_on_all_addresses_counts() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))  # noqa: S104 - that is what is tested
        holder.listen()
        with pytest.raises(StackError, match="is taken by"):
            check_ports([listening("kafka", {"kafka": holder.getsockname()[1]})])


def test_free_ports_pass() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    check_ports([listening("kafka", {str(port): port for port in ports})])


def test_shifted_ports_must_be_ports() -> None:
    assert PortSettings().shifted(1000).kafka == 10092
    with pytest.raises(ValueError, match="kafka"):
        PortSettings().shifted(60_000)


# --- processes -----------------------------------------------------------------------------


def test_ended_process_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = process_id(sleeper.pid)
    assert process is not None
    assert is_alive(process)
    sleeper.kill()
    # Not reaped yet: a zombie is nobody.
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about threads")
def test_process_lives_until_its_last_thread_has_ended() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "ctypes.PyDLL(None).syscall(60, 0)\n"  # exit(2) on x86-64: of this thread alone
    )
    code = code.replace("60, 0", f"{93 if os.uname().machine == 'aarch64' else 60}, 0")
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            found = psutil.Process(process.pid)
            while found.status() != psutil.STATUS_ZOMBIE:
                assert process.poll() is None
            left = process_id(process.pid)
            assert left is not None
            assert is_alive(left)
        finally:
            process.kill()


def test_process_that_ignores_sigterm_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code + "signal.pause()"], stdout=subprocess.PIPE
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        process = process_id(stubborn.pid)
        assert process is not None
        assert end_processes([process], timeout_s=0.2) == [process]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_component_dies_with_its_supervisor() -> None:
    child = Component(
        name="child",
        argv=(sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"),
        probe=None,
        env={},
        cwd=Path("/"),
    )
    parent = (
        "import os, subprocess, sys\n"
        "command = sys.argv[1:]\n"
        "command[command.index('--parent') + 1] = str(os.getpid())\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, *launch_command(child)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        assert supervisor.stdout is not None
        process = process_id(int(supervisor.stdout.readline()))
        assert process is not None
        supervisor.kill()
        psutil.wait_procs([psutil.Process(process.pid)], timeout=10)
        assert not is_alive(process)


# --- logs ----------------------------------------------------------------------------------


def test_grown_log_is_set_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    with log.open("a") as writer:
        writer.write("first\n" * 10)
        writer.flush()
        rotate_logs(tmp_path, max_bytes=1000)
        assert log.stat().st_size == 60
        rotate_logs(tmp_path, max_bytes=50)
        writer.write("second\n")
    assert log.read_text() == "second\n"
    assert tail(log, 2) == ["first", "second"]
    assert tail(tmp_path / "none.log", 2) == []


def test_last_error_of_a_run_is_found_with_its_remedy(tmp_path: Path) -> None:
    log = tmp_path / "raw-producer.log"
    assert last_error(log) is None
    log.write_text("error: of an earlier run\n", encoding="utf-8")
    begin = log.stat().st_size
    assert last_error(log, begin) is None
    with log.open("a", encoding="utf-8") as file:
        file.write("error: a first one\n{}\nerror: no channel 'é'\n{}\nremedy: name another\n")
    assert last_error(log, begin) == "no channel 'é' (remedy: name another)"
    # Cut meanwhile: what stands there is of this run.
    log.write_text("error: x\n", encoding="utf-8")
    assert last_error(log, begin) == "x"


def test_started_process_tells_its_own_last_error(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.logs.mkdir()
    layout.log("failing").write_text("error: of an earlier run\n", encoding="ascii")
    code = "import sys; print('error: wrong setting', file=sys.stderr); sys.exit(2)"
    child = Component("failing", (sys.executable, "-c", code), None, {}, Path("/"))
    handle = ProcessLauncher(layout).start(child)
    os.waitid(os.P_PID, handle.identity.pid, os.WEXITED | os.WNOWAIT)
    assert handle.poll() == 2
    assert handle.last_error() == "wrong setting"


# --- doctor --------------------------------------------------------------------------------


def test_doctor_names_a_taken_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_MEMORY_MB", "_DATA_MB", "_UNPACKED_MB"):  # whatever this machine has
        monkeypatch.setattr(doctor, limit, 0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        names = list(PortSettings.model_fields)
        ports = dict(zip(names, [port, *free_ports(len(names) - 1)], strict=True))
        settings = StackSettings(ports=PortSettings(**ports))
        bad = [c for c in examine(settings, tmp_path, running=False) if not c.is_good]
    assert [check.what for check in bad] == [f"port {port} (kafka)"]
    assert str(os.getpid()) in bad[0].found


def test_doctor_names_little_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MEMORY_MB", 10**9)
    monkeypatch.setattr(doctor, "_DATA_MB", 10**9)
    found = examine(StackSettings(), tmp_path, running=False)
    assert {c.what for c in found if not c.is_good} >= {"memory", "disk of the data"}
    with pytest.raises(PrerequisiteError, match=r"memory: .* MB available") as caught:
        refuse_lack(ArtifactCache(tmp_path, {}), tmp_path)
    assert caught.value.remedy is not None


def test_doctor_names_missing_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = examine(StackSettings(), tmp_path, running=True)
    remedies = {c.what: c.remedy for c in found if not c.is_good}
    assert set(remedies) == {"Java", "Postgres"}
    assert all(remedy and "make setup" in remedy for remedy in remedies.values())


def test_doctor_says_what_will_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSTREAM_CACHE_DIR", str(tmp_path / "cache"))
    found = {c.what: c for c in examine(StackSettings(), tmp_path, running=True)}
    assert "416 MB will be fetched" in found["Java files"].found
    assert not (tmp_path / "cache").exists()


def test_doctor_names_an_old_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    found = {c.what: c for c in examine(StackSettings(), tmp_path, running=True)}
    assert found["Python"].remedy is not None
