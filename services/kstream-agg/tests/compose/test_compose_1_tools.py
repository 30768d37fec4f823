"""The tools to look at the stack with: what they are told of it is true."""

from __future__ import annotations

import http.cookiejar
import json
import re
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from containers import ROOT

if TYPE_CHECKING:
    from containers import Compose

pytestmark = pytest.mark.timeout(300)


def test_the_tools_that_have_no_stand_in_are_told_addresses_that_answer(compose: Compose) -> None:
    console = yaml.safe_load((ROOT / "config/redpanda-console/console.yaml").read_text("utf-8"))
    akhq = yaml.safe_load((ROOT / "config/akhq/application.yml").read_text("utf-8"))
    (cluster,) = akhq["akhq"]["connections"].values()
    source = "config/grafana/provisioning/datasources/prometheus.yaml"
    grafana = yaml.safe_load((ROOT / source).read_text("utf-8"))
    sockets = [*console["kafka"]["brokers"], cluster["properties"]["bootstrap.servers"]]
    registries = [*console["schemaRegistry"]["urls"], cluster["schema-registry"]["url"]]
    workers = [each["url"] for each in (*console["kafkaConnect"]["clusters"], *cluster["connect"])]
    pages = [f"{url}/subjects" for url in registries] + [f"{url}/connectors" for url in workers]
    pages += [f"{each['url']}/-/ready" for each in grafana["datasources"]]
    program = (
        "import socket, sys, urllib.request as request\n"
        f"for place in {sockets!r}:\n"
        "    host, port = place.rsplit(':', 1)\n"
        "    socket.create_connection((host, int(port)), 5).close()\n"
        f"for page in {pages!r}:\n"
        "    print(request.urlopen(page, timeout=10).status)\n"
    )
    said = compose("exec", "-T", "agg-producer", "python", "-c", program)
    assert said.split() == ["200"] * len(pages)


class PgAdmin:
    """What pgAdmin's own pages ask its server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/browser/"
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(jar)
        self._open("")
        script = self._open("js/utils.js").decode()
        (header,) = re.findall(r"\['csrf_token_header'\] = '(.*?)';", script)
        (token,) = re.findall(r"\['csrf_token'\] = '(.*?)';", script)
        self._opener.addheaders.append((header, token))

    def ask(self, path: str, method: str = "GET") -> dict[str, Any]:
        """The answer to one of its requests."""
        answer: dict[str, Any] = json.loads(self._open(path, method))
        assert answer["success"] == 1, answer
        return answer

    def _open(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(self._url + path, method=method)  # noqa: S310 - http to this machine
        with self._opener.open(request, timeout=60) as answer:
            found: bytes = answer.read()
            return found


def test_pgadmin_knows_the_server_and_its_password(compose: Compose) -> None:
    pgadmin = PgAdmin(compose.port("pgadmin", 5050))
    (group,) = pgadmin.ask("nodes/")["data"]
    (server,) = pgadmin.ask(f"server/nodes/{group['_id']}/")["result"]
    assert (group["label"], server["label"]) == ("Servers", "kstream-agg")
    place = f"{group['_id']}/{server['_id']}"
    # Nobody types a password.
    assert pgadmin.ask(f"server/connect/{place}", "POST")["data"]["connected"] is True
    databases = pgadmin.ask(f"database/nodes/{place}/")["data"]
    assert "raw" in {each["label"] for each in databases}
