"""Where settings come from: file, environment, flags; each overrides what is before it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from modelcache.config.groups import Settings
from modelcache.config.rules import broken_rules, validated
from modelcache.config.values import convert
from modelcache.errors import InvalidConfig

ENVIRONMENT_PREFIX: Final = "MODELCACHE_"

Flags = Mapping[str, tuple[str, str | int | bool | None]]
"""Options of a command line: what a user writes, the `group.field` it overrides, and the value."""


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read file and environment over the defaults.

    path: the file to read; it must exist when given. Raises InvalidConfig naming the setting, its
    place and what it would accept.
    """
    environment = os.environ if environment is None else environment
    chosen = path or _find_file(environment)
    table = _read_toml(chosen) if chosen else {}
    settings = _apply_table(Settings(), table, where=str(chosen))
    return validated(_apply_environment(settings, environment))


def find_problems(
    path: Path | None, environment: Mapping[str, str], flags: Flags
) -> list[InvalidConfig]:
    """Everything that is wrong with a configuration, where `load_settings` tells the first only.

    Each setting is looked at alone, then all of them together. Flags are looked at too.
    """
    try:
        chosen = path or _find_file(environment)
        table = _read_toml(chosen) if chosen else {}
    except InvalidConfig as error:
        return [error]
    steps: list[Callable[[Settings], Settings]] = []
    for group, values in table.items():
        parts = (
            [{name: value} for name, value in values.items()]
            if isinstance(values, dict)
            else [values]
        )
        steps += [partial(_apply_table, table={group: part}, where=str(chosen)) for part in parts]
    steps += [
        partial(_apply_environment, environment={name: environment[name]}) for name in environment
    ]
    steps += [partial(_flagged, flag=flag, given=given) for flag, given in flags.items()]
    settings = Settings()
    problems: dict[str, InvalidConfig] = {}
    for step in steps:
        try:
            settings = step(settings)
        except InvalidConfig as error:
            problems.setdefault(error.message, error)
    for message in broken_rules(settings):
        problems.setdefault(message, InvalidConfig(message))
    return list(problems.values())


def _flagged(settings: Settings, flag: str, given: tuple[str, Any]) -> Settings:
    """With one flag, which is at fault only for what it would break alone."""
    name, value = given
    override(Settings(), {flag: given})
    group, _, inner = name.partition(".")
    return (
        settings if value is None else _apply_table(settings, {group: {inner: value}}, where=flag)
    )


def override(settings: Settings, flags: Flags) -> Settings:
    """Apply flags over settings; a value of None is not given. Raises InvalidConfig."""
    for flag, (name, value) in flags.items():
        if value is not None:
            group, _, inner = name.partition(".")
            try:
                settings = _apply_table(settings, {group: {inner: value}}, where=flag)
                validated(settings)
            except InvalidConfig as error:  # a user of flags need not know the settings' names
                message = error.message.removeprefix(f"{flag}: ").replace(name, flag)
                raise InvalidConfig(message) from error
    return settings


def _find_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if named:
        return Path(named)
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "/")) / ".config"
    candidates = [Path(home) / "modelcache/config.toml", Path("/etc/modelcache/config.toml")]
    # Not Path.is_file, which raises where a folder on the way may not be searched.
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}") from error


def _apply_table(settings: Settings, table: Mapping[str, Any], *, where: str) -> Settings:
    groups = {item.name for item in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in table.items():
        if name not in groups:
            raise InvalidConfig(f"{where}: unknown setting {name!r}; known are {sorted(groups)}")
        current = getattr(settings, name)
        if name == "max_age_s":
            changes[name] = convert(value, current, f"{where}: {name}")
        elif not isinstance(value, dict):
            raise InvalidConfig(f"{where}: {name!r} must be a table, [{name}]")
        else:
            changes[name] = _apply_group(current, value, f"{where}: {name}")
    return replace(settings, **changes)


def _apply_group(group: Any, table: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    known = {item.name for item in fields(group)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise InvalidConfig(f"{where}: unknown setting {unknown[0]!r}; known are {sorted(known)}")
    return replace(
        group,
        **{
            name: convert(value, getattr(group, name), f"{where}.{name}")
            for name, value in table.items()
        },
    )


def _apply_environment(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Unknown MODELCACHE_ names are left alone: other programs may own them."""
    table: dict[str, Any] = {}
    for item in fields(Settings):
        prefix = f"{ENVIRONMENT_PREFIX}{item.name.upper()}"
        if item.name == "max_age_s":
            if environment.get(prefix):
                table[item.name] = environment[prefix]
            continue
        for inner in fields(getattr(settings, item.name)):
            value = environment.get(f"{prefix}_{inner.name.upper()}")
            if value:
                table.setdefault(item.name, {})[inner.name] = value
    short = environment.get(f"{ENVIRONMENT_PREFIX}STORE")
    if short:
        table.setdefault("store", {}).setdefault("path", short)
    return _apply_table(settings, table, where="environment")
