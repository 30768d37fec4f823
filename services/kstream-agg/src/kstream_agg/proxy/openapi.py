"""The OpenAPI document of the push proxy, and the page that tries it out."""

from __future__ import annotations

import json
from importlib import metadata, resources
from typing import Any, Final

__all__ = ["openapi_document", "pages"]

_TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_RECORD: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["topic"],
    "properties": {
        "topic": {"type": "string", "description": "Where to.", "example": "SOME_TOPIC"},
        "data": {
            "description": (
                "The value: a string goes as its text, any other JSON value as it stands in the "
                "body, null is a tombstone. Required unless data_base64 is given."
            )
        },
        "data_base64": {"type": ["string", "null"], "description": "The value's bytes instead."},
        "key": {"type": ["string", "null"], "description": "Decides the partition."},
        "partition": {
            "type": ["integer", "null"],
            "description": "The partition, if the key is not to decide it; -1 is none.",
        },
        "headers": {
            "description": "Headers: an object, or [name, value] pairs where names repeat.",
            "oneOf": [
                {"type": "null"},
                {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
                {
                    "type": "array",
                    "items": {
                        "type": "array",
                        "prefixItems": [{"type": "string"}, {"type": ["string", "null"]}],
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
            ],
        },
        "timestamp": {
            "type": ["integer", "null"],
            "description": "Milliseconds since the epoch; default: now.",
        },
        "schema_subject": {
            "type": ["string", "null"],
            "description": "Encode `data` to Avro with this subject's newest schema.",
        },
        "schema_id": {
            "type": ["integer", "null"],
            "description": "Encode `data` to Avro with this schema.",
        },
    },
}
_PUSH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["records"],
    "properties": {
        "records": {"type": "array", "items": {"$ref": "#/components/schemas/Record"}},
        "wait_for_send": {
            "type": ["boolean", "null"],
            "default": False,
            "description": "Answer only when Kafka has confirmed every record.",
        },
    },
    "example": {
        "records": [{"topic": "SOME_TOPIC", "data": '{"a": "b"}'}],
        "wait_for_send": False,
    },
}
_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["status", "errors"],
    "properties": {
        "status": {"enum": ["ok", "error"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["status", "error"],
                "properties": {"status": {"enum": ["ok", "error"]}, "error": {"type": "string"}},
            },
        },
    },
}
_STATUSES: Final = {
    200: "All records are delivered, or (not waiting) delivered or durable.",
    207: "Some records failed: `errors` has one entry a record, in their order.",
    400: "The body is malformed; the error says where.",
    401: "An API key is needed, or it is not known.",
    403: "The API key may not push to the topic.",
    404: "The topic does not exist.",
    408: "The request did not come in time.",
    413: "The body, the number of records or a record is too large.",
    422: "A record's field is invalid; the error names it.",
    429: "A rate limit is reached.",
    431: "The headers are too large.",
    500: "The server has a defect, or (status_codes: reference) a record failed.",
    503: "Kafka is away and nothing makes the records durable, or queue or log are full.",
    504: "Kafka has not confirmed the records in time.",
}
_RETRY_AFTER: Final = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}
}


def openapi_document(*, with_keys: bool) -> dict[str, Any]:
    """The document.

    Args:
        with_keys: Whether API keys are needed.
    """
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}
    responses = {
        str(status): {
            "description": text,
            "content": answer,
            **({"headers": _RETRY_AFTER} if status in (429, 503, 504) else {}),
        }
        for status, text in _STATUSES.items()
    }
    push: dict[str, Any] = {
        "operationId": "push",
        "summary": "Write records to Kafka.",
        "parameters": [
            {
                "name": "traceparent",
                "in": "header",
                "required": False,
                "description": "W3C trace context; the records carry it on.",
                "schema": {"type": "string"},
                "example": f"00-{_TRACE_ID}-00f067aa0ba902b7-01",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Push"}}},
        },
        "responses": responses,
    }
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    if with_keys:
        push["security"] = [{"bearer": []}, {"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "push-proxy",
            "version": metadata.version("kstream-agg"),
            "description": "HTTP in, Kafka out.",
        },
        "paths": {"/push": {"post": push}},
        "components": {
            "schemas": {"Record": _RECORD, "Push": _PUSH, "Answer": _ANSWER},
            **({"securitySchemes": schemes} if with_keys else {}),
        },
    }


def pages(*, with_keys: bool) -> dict[bytes, tuple[str, bytes]]:
    """What GET gives: content type and body by path."""
    document = json.dumps(openapi_document(with_keys=with_keys), indent=1).encode()
    page = resources.files("kstream_agg.proxy").joinpath("try.html").read_bytes()
    return {
        b"/openapi.json": ("application/json", document),
        b"/docs": ("text/html; charset=utf-8", page),
    }
