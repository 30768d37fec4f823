"""The OpenAPI document of the push proxy, and the page that tries it out."""

from __future__ import annotations

import json
from importlib import metadata, resources
from typing import Any, Final

__all__ = ["openapi_document", "pages"]

_TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_NULL: Final = {"type": "null"}
_BASE64: Final = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_COMMON: Final[dict[str, Any]] = {
    "topic": {
        "type": "string",
        "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,248}$",
        "description": "Where to.",
        "example": "SOME_TOPIC",
    },
    "key": {"type": ["string", "null"], "description": "Decides the partition."},
    "partition": {
        "type": ["integer", "null"],
        "minimum": -1,
        "maximum": 2**31 - 1,
        "description": "The partition, if the key is not to decide it; -1 is none.",
    },
    "headers": {
        "description": "Headers: an object, or [name, value] pairs where names repeat.",
        "anyOf": [
            _NULL,
            {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
            {
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [{"type": "string"}, {"type": ["string", "null"]}],
                    "items": False,
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        ],
    },
    "timestamp": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 2**63 - 1,
        "description": "Milliseconds since the epoch; default: now.",
    },
}
_DATA: Final[dict[str, Any]] = {
    "data": {
        "description": (
            "The value: a string goes as its text, any other JSON value as it stands in the body, "
            "null is a tombstone."
        )
    }
}
_BYTES: Final[dict[str, Any]] = {
    "data_base64": {
        "type": "string",
        "contentEncoding": "base64",
        "pattern": _BASE64,
        "description": "The value's bytes, in base64.",
    }
}
_SUBJECT: Final[dict[str, Any]] = {
    "schema_subject": {
        "type": "string",
        "minLength": 1,
        "description": "Encode `data` to Avro with this subject's newest schema.",
    }
}
_SCHEMA_ID: Final[dict[str, Any]] = {
    "schema_id": {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**31 - 1,
        "description": "Encode `data` to Avro with this schema.",
    }
}
_KINDS: Final = {
    "Record": (_DATA, ("data_base64", "schema_subject", "schema_id")),
    "BinaryRecord": (_BYTES, ("data", "schema_subject", "schema_id")),
    "AvroRecordBySubject": (_DATA | _SUBJECT, ("data_base64", "schema_id")),
    "AvroRecordById": (_DATA | _SCHEMA_ID, ("data_base64", "schema_subject")),
}


def _record(own: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    # What belongs to another kind may only be null; `data` must be absent, as null is a value.
    excluded = {name: False if name == "data" else _NULL for name in others}
    return {
        "type": "object",
        "required": ["topic", *own],
        "properties": {**_COMMON, **own, **excluded},
    }


_PUSH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["records"],
    "properties": {
        "records": {
            "type": "array",
            "items": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in _KINDS]},
        },
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
    404: "The topic, the partition or the schema does not exist.",
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
            "schemas": {
                **{name: _record(own, others) for name, (own, others) in _KINDS.items()},
                "Push": _PUSH,
                "Answer": _ANSWER,
            },
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
