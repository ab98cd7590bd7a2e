"""The description of the server's routes, as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

import detector
from detector.tasks import Results

Tree = dict[str, Any]

PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
BINARY = {"type": "string", "format": "binary"}
REFUSALS = {
    401: "the token is missing or wrong",
    408: "the body did not arrive in time",
    413: "the body is larger than the server takes",
    422: "an image is damaged or too large, or the query is wrong; the line says which",
    503: "too many requests are waiting; Retry-After says when to try again",
    504: "no answer in time",
}


def describe(results: Results, has_token: bool) -> Tree:
    """The document for a model of a task with these ``results``."""
    row = {"type": "object", "properties": results.FIELDS}
    has_score = "score_threshold" in results.INPUTS
    score = [_query("score", PROBABILITY, "lowest score, instead of the model's")] if has_score else []
    predict = {
        "summary": "What is in one or several images",
        "description": "The body is an image file, or a form of several. Its content says what it is, not its type.",
        "parameters": [
            *score,
            _query("output", {"enum": ["json", "drawing"], "default": "json"}, "results, or one image drawn as JPEG"),
            _query("draw_score", PROBABILITY | {"default": 0.4}, "lowest score that is drawn"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": BINARY},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"images": {"type": "array", "items": BINARY}}}
                },
            },
        },
        "responses": {
            "200": {
                "description": "One row per result, as detector infer writes them",
                "headers": {
                    "Server-Timing": {"description": "decode, wait and model in ms", "schema": {"type": "string"}}
                },
                "content": {
                    "application/json": {"schema": {"type": "array", "items": row}},
                    "image/jpeg": {"schema": BINARY},
                },
            }
        }
        | _refusals(has_token),
    }
    paths = {
        "/": _get("A page to try the model", "text/html"),
        "/predict": {"post": _guarded(predict, has_token)},
        "/model": {"get": _guarded(_get("Task, classes, input and limits")["get"], has_token)},
        "/healthz": _get("Whether the server runs", "text/plain"),
        "/readyz": _get("Whether it has predicted its first batch", "text/plain", {"503": {"description": "not yet"}}),
        "/metrics": {"get": _guarded(_get("Counters in Prometheus's text form", "text/plain")["get"], has_token)},
        "/openapi.json": _get("This document"),
    }
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    components: Tree = {"schemas": {"Error": error}}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "detector", "version": detector.__version__},
        "paths": paths,
        "components": components,
    }


def _query(name: str, schema: Tree, description: str) -> Tree:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _get(summary: str, kind: str = "application/json", others: Tree | None = None) -> Tree:
    answer = {"200": {"description": summary, "content": {kind: {}}}}
    return {"get": {"summary": summary, "responses": answer | (others or {})}}


def _refusals(has_token: bool) -> Tree:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {"description": reason, "content": content}
        for status, reason in REFUSALS.items()
        if status != 401 or has_token
    }


def _guarded(operation: Tree, has_token: bool) -> Tree:
    return operation | ({"security": [{"token": []}]} if has_token else {})
