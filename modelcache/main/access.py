"""`access`: may this environment's credentials read a model? For scripts, and for the agent."""

from __future__ import annotations

from modelcache.main.app import Config, Json, RefArgument, app, say, settings_for


@app.command()
def access(ref: RefArgument, config: Config = None, *, as_json: Json = False) -> None:
    """Resolve a ref and read one byte of it; exit code 1 and the reason if that is not allowed."""
    from modelcache.agent.reading import readable  # noqa: PLC0415 - see the package
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    parsed = parse_ref(ref)
    model_id = readable(settings_for(None, config, {}), parsed)
    if as_json:
        present.print_json({"model_id": model_id, "ref": parsed.redacted()})
    else:
        say(f"{parsed.redacted()} can be read; it is {model_id[:12]}")
