"""The fields of a request, their limits, and the OpenAPI description."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping

import fairseq_plugins
from fairseq_plugins.utils.errors import UserError, did_you_mean

__all__ = ["EXPLORE_FIELDS", "TRANSLATE_FIELDS", "Field", "openapi", "parse_fields"]

MAX_TEXT = 1000
MAX_BEAM = 20


@dataclass(frozen=True)
class Field:
    """A field of a request.

    Attributes:
        kind: ``str``, ``int`` or ``float``.
        description: for the OpenAPI description.
        least, most: limits of the number, or of the number of characters.
        default: the value of a field that is absent or null.
        required: whether it must be given.
    """

    kind: type
    description: str
    least: float
    most: float
    default: Any = None
    required: bool = False

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        names = {str: "string", int: "integer", float: "number"}
        ends = (
            ("minLength", "maxLength") if self.kind is str else ("minimum", "maximum")
        )
        schema = {
            "type": names[self.kind],
            "description": self.description,
            ends[0]: self.least,
            ends[1]: self.most,
        }
        if self.default is not None:
            schema["default"] = self.default
        return schema


_SEARCH = {
    "text": Field(
        str,
        "Source text. White space, with line breaks, is reduced to single spaces.",
        1, MAX_TEXT, required=True,
    ),
    "beam": Field(int, "Hypotheses kept at each step.", 1, MAX_BEAM, 5),
    "lenpen": Field(
        float, "Exponent of the length that scores are divided by.", 0.0, 5.0, 1.0
    ),
}  # fmt: skip
TRANSLATE_FIELDS = {
    **_SEARCH,
    "run": Field(str, "Name of a run; without it, all runs translate.", 1, 1000),
    "nbest": Field(int, "Hypotheses returned, at most `beam`.", 1, MAX_BEAM, 1),
}
EXPLORE_FIELDS = {
    **_SEARCH,
    "run": Field(str, "Name of a run; without it, the first.", 1, 1000),
    "reference": Field(str, "A translation to follow in the beam.", 0, MAX_TEXT),
    "epsilon": Field(
        float, "Of the SOFT top-k, in nats; without it, that of the run.", 1e-3, 1e3
    ),
}


def parse_fields(fields: Mapping[str, Field], body: bytes) -> dict[str, Any]:
    """Return the value of each field.

    Raises:
        UserError: the body is not a JSON object, or a field is unknown, missing, of
            another type or out of its limits.
    """
    try:
        values = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError("the body must be a JSON object in UTF-8.")
    for name in values:
        if name not in fields:
            listed = ", ".join(f"`{field}`" for field in fields)
            raise UserError(
                f"a field must be one of {listed}, but one is `{_shown(name)}`."
                f"{did_you_mean(name[:100], fields)}"
            )
    return {name: _check(name, fields[name], values.get(name)) for name in fields}


def _check(name: str, field: Field, value: Any) -> Any:
    if value is None:
        if field.required:
            raise UserError(f"`{name}` must be given.")
        return field.default
    least, most = f"{field.least:,g}", f"{field.most:,g}"
    if field.kind is str:
        if not isinstance(value, str):
            raise UserError(f"`{name}` must be text, but is `{_shown(value)}`.")
        # A JSON string may hold half of a surrogate pair, which is no character.
        value = " ".join(value.encode("utf-8", "replace").decode("utf-8").split())
        if not field.least <= len(value) <= field.most:
            raise UserError(
                f"`{name}` must have between {least} and {most} characters, but has "
                f"{len(value):,}."
            )
        return value
    is_number = isinstance(value, int) or (
        field.kind is float and isinstance(value, float)
    )
    if (
        isinstance(value, bool)
        or not is_number
        or not field.least <= value <= field.most
    ):
        kind = "a whole number" if field.kind is int else "a number"
        raise UserError(
            f"`{name}` must be {kind} between {least} and {most}, but is "
            f"`{_shown(value)}`."
        )
    return field.kind(value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= 80 else f"{text[:79]}…"


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the interface."""
    error = _object(error={"type": "string"})
    refused = {
        "403": "the request comes from another web page",
        "408": "the body did not arrive in time",
        "413": "the body is too long",
        "422": "a field is wrong, or a text is too long for the model",
        "503": "too many requests are waiting; try again later",
    }
    hypothesis = _object(
        text={"type": "string"},
        score={"type": "number", "description": "log p / length ** lenpen, in nats"},
        length={"type": "integer", "description": "tokens without the end"},
        tokens={"type": "array", "items": {"type": "string"}},
    )
    translation = _object(
        run={"type": "string"}, hypotheses={"type": "array", "items": hypothesis}
    )
    results = {
        "/translate": _object(translations={"type": "array", "items": translation}),
        "/explore": _object(
            run={"type": "string"},
            search={
                "type": "object",
                "description": "see fairseq_plugins.evaluation.report.explorer",
            },
        ),
    }
    summaries = {"/translate": "Translate a text.", "/explore": "Describe a search."}
    paths = {}
    for path, fields in (
        ("/translate", TRANSLATE_FIELDS),
        ("/explore", EXPLORE_FIELDS),
    ):
        request = _object(**{name: field.schema() for name, field in fields.items()})
        request["required"] = [name for name, field in fields.items() if field.required]
        request["additionalProperties"] = False
        responses = {"200": _content("the result", results[path])}
        responses |= {code: _content(why, error) for code, why in refused.items()}
        paths[path] = {
            "post": {
                "summary": summaries[path],
                "requestBody": {"required": True, **_content(None, request)},
                "responses": responses,
            }
        }
    title = "fairseq-soft-topk"
    info = {"title": title, "version": fairseq_plugins.__version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _content(description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    if description is not None:
        content["description"] = description
    return content
