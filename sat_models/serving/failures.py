"""Failures as a client of the API reads them: a status and a short message, never a flag of our command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from sat_models.errors import InputError, MissingPackageError, UnknownNameError, ZooError
from sat_models.serving.body import error_body
from sat_models.serving.requests import BusyError, RequestTimeoutError
from sat_models.text import printable

logger = logging.getLogger(__name__)


class UnknownModelError(ZooError):
    """A model that does not run here."""


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return 400, error_body(printable(_problems(found)))
    if isinstance(error, HTTPException):
        return error.status_code, error_body(printable(str(error.detail)))
    if isinstance(error, UnknownModelError):
        return 404, error_body(error.public, code="model_not_found")
    if isinstance(error, InputError | UnknownNameError):
        return 400, error_body(error.public)
    if isinstance(error, MissingPackageError):
        return 501, error_body(error.public, kind="server_error", code="not_installed")
    if isinstance(error, BusyError):
        return 503, error_body(error.public, kind="server_error", code="overloaded")
    if isinstance(error, RequestTimeoutError):
        return 504, error_body(error.public, kind="server_error", code="timeout")
    said = error.public if isinstance(error, ZooError) else error
    return 500, error_body(printable(f"{type(error).__name__}: {said}"), kind="server_error")


def _problems(found: Sequence[dict[str, Any]]) -> str:
    """The findings of a body's validation, in a few short lines."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(_problem(problem)[:300] for problem in found[:3]) + more


def _problem(problem: dict[str, Any]) -> str:
    """One finding of the body's validation: `messages.0.role: Input should be …`."""
    place = ".".join(str(part)[:40] for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        what = printable(f"{request.method} {request.url.path[:80]}")
        error = HTTPException(error.status_code, f"There is no {what} here. There are: {', '.join(_routes(request))}.")
    status, body = describe(error)
    if status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(body, status, {"Retry-After": "2"} if status == 503 else None)


def _routes(request: Request) -> list[str]:
    """What can be called, with its method."""
    routes = [route for route in request.app.routes if "{" not in route.path]
    return [f"{method} {route.path}" for route in routes for method in sorted(route.methods - {"HEAD"})]
