"""The image's health check: exits 0 when the service says that it is ready.

usage: healthcheck.py [URL]   by default /readyz on the port of KSTREAM__HTTP__PORT
"""

import http.client
import os
import sys
from urllib.parse import urlsplit

default = f"http://127.0.0.1:{os.environ.get('KSTREAM__HTTP__PORT', '9100')}/readyz"
url = urlsplit(sys.argv[1] if len(sys.argv) > 1 else default)
connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=4)
try:
    connection.request("GET", url.path or "/")
    answer = connection.getresponse()
    said = answer.read(2000).decode(errors="replace").strip()
except OSError as error:
    sys.exit(f"{url.geturl()} does not answer: {error}")
sys.stdout.write(f"{said}\n")
sys.exit(answer.status != http.client.OK)
