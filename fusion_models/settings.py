# SPDX-License-Identifier: AGPL-3.0-only
"""Settings of the command-line scripts: defaults, then `key=value` arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it and what is allowed."""


def show_help(arguments: list[str], text: str | None) -> bool:
    """Print a script's docstring if the arguments ask for help; return whether they did."""
    asked = bool({"-h", "--help"} & set(arguments))
    if asked:
        print(text)
    return asked


def split_arguments(arguments: list[str], keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """The `key=value` arguments of these keys, and the others, to be passed on."""
    own = tuple(f"{key}=" for key in keys)
    return (
        [one for one in arguments if one.startswith(own)],
        [one for one in arguments if not one.startswith(own)],
    )


def parse_arguments(arguments: list[str]) -> DictConfig:
    """`key=value` arguments as a config; `key=` is the empty string.

    Raises:
        ConfigError: an argument without `=`.
    """
    for argument in arguments:
        if "=" not in argument:
            raise ConfigError(f"'{argument}': expected key=value")
    parsed = OmegaConf.from_dotlist(arguments)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if not value:
            OmegaConf.update(parsed, key, "")
    return parsed


def check_type(key: str, value: object, default: object) -> None:
    """Refuse a value of another type than the default's, of those that have one.

    Raises:
        ConfigError: it says which values are expected.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, wanted = number and isinstance(value, int), "a whole number"
    elif isinstance(default, float):
        fits, wanted = number and math.isfinite(value), "a number"
    else:
        return
    if not fits:
        raise ConfigError(f"{key}={value}: expected {wanted}, as in {key}={str(default).lower()}")


def check_counts(config: DictConfig, *keys: str) -> None:
    """Refuse settings below 0 with ConfigError."""
    for key in keys:
        if config[key] < 0:
            raise ConfigError(f"{key}={config[key]}: expected 0 or more")


def merge_settings(defaults: dict, arguments: list[str]) -> DictConfig:
    """Defaults overridden by `key=value` arguments, each of the default's type.

    Raises:
        ConfigError: an unknown key or a value of another type; the message lists the keys.
    """
    given = parse_arguments(arguments)
    if unknown := sorted(set(given) - set(defaults)):
        raise ConfigError(f"unknown settings {', '.join(unknown)}; use {', '.join(defaults)}")
    for key, value in given.items():
        check_type(key, value, defaults[key])
    try:
        return OmegaConf.merge(OmegaConf.create(defaults), given)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def result_files(output: object, *suffixes: str) -> list[Path]:
    """Paths of results, `output` with each suffix, or none for ''; their folder is made.

    `output` may have one of the suffixes already; another dot in its name is kept: `lr0.05` becomes
    `lr0.05.json`. Call it before long work.

    Raises:
        ConfigError: the folder cannot be made or written in.
    """
    if not output:
        return []
    base = Path(str(output)).expanduser()
    if base.suffix in suffixes:
        base = base.with_suffix("")
    files = [base.with_name(base.name + suffix) for suffix in suffixes]
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: no folder can be made there ({error})") from error
    if not os.access(base.parent, os.W_OK):
        raise ConfigError(f"output={output}: the folder {base.parent} cannot be written in")
    if taken := [str(file) for file in files if file.is_dir()]:
        raise ConfigError(f"output={output}: {taken[0]} is a folder; name a file")
    return files
