"""HTTP requests as tests make them: an answer may take its time on a machine that others load."""

from __future__ import annotations

from typing import Any, Final

import httpx2

ANSWER_S: Final = 60.0


def get(url: str, **more: Any) -> httpx2.Response:  # noqa: ANN401 - httpx2's own
    return httpx2.get(url, timeout=ANSWER_S, **more)


def post(url: str, **more: Any) -> httpx2.Response:  # noqa: ANN401 - httpx2's own
    return httpx2.post(url, timeout=ANSWER_S, **more)
