"""The API's description as one page for people, without a script and without anybody's server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { background: #8881; padding: .8rem; overflow: auto }
h2 code { font-size: 1.1rem } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
td, th { border-bottom: 1px solid #8884 }
.method { display: inline-block; min-width: 4.5rem; font-weight: bold }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } a { color: #8bf } }
"""
Schema = Mapping[str, Any]


def render(openapi: Schema) -> str:
    """The page for an OpenAPI document."""
    info = openapi["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))}</p>",
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method, path, operation)
    parts.append("<h1>Values</h1>")
    for name, schema in openapi.get("components", {}).get("schemas", {}).items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    heading = f"<span class=method>{escape(method.upper())}</span>{escape(path)}"
    yield f"<h2><code>{heading}</code></h2>"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "<table><tr><th>parameter<th>in<th>type<th>meaning"
        for each in parameters:
            cells = (each["name"], each["in"], _type(each["schema"]), each.get("description", ""))
            yield _row(cells)
        yield "</table>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"<p>Takes {_linked(body['schema'])}.</p>"
    for status, answer in operation.get("responses", {}).items():
        for kind, content in answer.get("content", {}).items():
            told = _linked(content["schema"]) if content.get("schema") else escape(kind)
            yield f"<p>{escape(status)}: {told} <small>({escape(kind)})</small></p>"


def _schema(name: str, schema: Schema) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>'
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    if "enum" in schema:
        values = (f"<code>{escape(str(value))}</code>" for value in schema["enum"])
        yield f"<p>One of {', '.join(values)}.</p>"
    properties = schema.get("properties", {})
    if properties:
        yield "<table><tr><th>field<th>type<th>meaning<th>example"
        for field, value in properties.items():
            example = value.get("examples", [value.get("default", "")])[0]
            yield (
                f"<tr><td><code>{escape(field)}</code><td>{_linked(value)}"
                f"<td>{escape(value.get('description', ''))}<td><code>{_shown(example)}</code>"
            )
        yield "</table>"
    for example in schema.get("examples", []):
        yield f"<pre>{escape(json.dumps(example, indent=2))}</pre>"


def _linked(schema: Schema) -> str:
    """A type, with links to what it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_linked(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_linked(schema.get('items', {}))}"
    return escape(_type(schema))


def _type(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    return str(schema.get("type", "any"))


def _shown(value: object) -> str:
    return escape(json.dumps(value)) if value != "" else ""


def _row(cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells)
