"""Where the options of a mount come from: files, the environment, the command line. What comes later counts.

    /etc/cloudai/config.toml, ~/.config/cloudai/config.toml, the file that $CLOUDAI_CONFIG names: a section [mount]
    whose keys are the options of `options`; then $CLOUDAI_<OPTION>; then `-o` and fstab.

What is not known or not valid is refused with the place where it stands: a word that is passed over in silence is
found out when it is too late.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, cast

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.options import (
    OPTION_SPECS,
    SPEC_BY_NAME,
    MountOptions,
    OptionSpec,
    parse_options,
    refuse_unknown_option,
)
from cloudai_daemon.places import config_files

CONFIG_VARIABLE: Final = "CLOUDAI_CONFIG"
TOKEN_VARIABLE: Final = "CLOUDAI_TOKEN"  # noqa: S105  # a variable's name
VARIABLE_PREFIX: Final = "CLOUDAI_"
SECTION: Final = "mount"

_FILE_BYTES_MAX: Final = 256 * 1024
_FLAG_WORDS: Final = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
# Of each two the later one takes the earlier one back; in one and the same place they are refused.
_EXCLUDING: Final = {"insecure": "ca_file", "ca_file": "insecure"}


@dataclass(frozen=True, kw_only=True)
class GivenOption:
    """The value of one option, and where it comes from."""

    value: object
    text: str
    """As it was given."""
    origin: str
    """A file's path, or `$VARIABLE`."""


Given = dict[str, GivenOption]
"""By field of MountConfig."""


def gather_options(text: str, on_unknown: Callable[[str], None] = refuse_unknown_option) -> MountOptions:
    """What `-o` gives, with what files and the environment say of the rest. Raises as parse_options."""
    given = parse_options(text, on_unknown)
    configured = read_configured_options()
    values = {field: option.value for field, option in _without_excluded(configured, given).items()}
    return cast(MountOptions, {**values, **given})


def read_configured_options() -> Given:
    """What files and the environment say. Raises CommandFailed (usage)."""
    given: Given = {}
    for path in list_files():
        if path.exists() or path == _chosen_file():
            later = _read_file(path)
            given = {**_without_excluded(given, _values_of(later)), **later}
    later = _read_environment(os.environ)
    given = {**_without_excluded(given, _values_of(later)), **later}
    if os.environ.get(TOKEN_VARIABLE) and not _is_from_environment(given.get("token_file")):
        given.pop("token_file", None)
    return given


def list_files() -> list[Path]:
    """All that are looked for, whether they are there or not; the last has to be, if $CLOUDAI_CONFIG names it."""
    chosen = _chosen_file()
    return [*config_files(), *([chosen] if chosen is not None else [])]


def _chosen_file() -> Path | None:
    name = os.environ.get(CONFIG_VARIABLE)
    return Path(name).absolute() if name else None


def variable_of(spec: OptionSpec) -> str:
    """The environment's name of an option."""
    return VARIABLE_PREFIX + spec.name.upper()


def _is_from_environment(option: GivenOption | None) -> bool:
    return option is not None and option.origin.startswith("$")


def _values_of(given: Given) -> dict[str, object]:
    return {field: option.value for field, option in given.items()}


def _without_excluded(earlier: Given, later: Mapping[str, object]) -> Given:
    taken_back = {_EXCLUDING[field] for field, value in later.items() if value and field in _EXCLUDING}
    return {field: option for field, option in earlier.items() if field not in taken_back}


def _read_file(path: Path) -> Given:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
                _refuse(
                    str(path),
                    "somebody else can change it: it must be yours or root's, and not writable by all",
                )
            text = file.read(_FILE_BYTES_MAX + 1)
        if len(text) > _FILE_BYTES_MAX:
            _refuse(str(path), f"more than {_FILE_BYTES_MAX // 1024} KiB")
        sections = tomllib.loads(text.decode())
    except OSError as error:
        _refuse(str(path), error.strerror or str(error), error)
    except ValueError as error:  # of TOML, with the line, or of UTF-8
        _refuse(str(path), str(error), error)
    given: Given = {}
    for section, options in sections.items():
        if section != SECTION or not isinstance(options, dict):
            _refuse(str(path), f"unknown {section!r}: options are in a section [{SECTION}]")
        for name, value in options.items():
            place = f"{path}: [{SECTION}] {name}"
            spec = SPEC_BY_NAME.get(name)
            if spec is None:
                _refuse(place, f"unknown option; known are {', '.join(SPEC_BY_NAME)}")
            given[spec.field] = _parse_setting(spec, value, place, str(path))
    return given


def _parse_setting(spec: OptionSpec, value: object, place: str, origin: str) -> GivenOption:
    if spec.parse is None:
        if not isinstance(value, bool):
            _refuse(place, "expected true or false")
        return _flag(spec, is_set=value, origin=origin)
    if isinstance(value, int | float) and not isinstance(value, bool) and spec.takes_number:
        value = str(value)
    if not isinstance(value, str):
        _refuse(place, "expected a string" + (" or a number" if spec.takes_number else ""))
    if spec.is_path and not Path(value).expanduser().is_absolute():
        _refuse(place, "a path in a file is absolute, or begins with ~")
    return _parse_text(spec, value, place, origin)


def _read_environment(environment: Mapping[str, str]) -> Given:
    given: Given = {}
    for spec in OPTION_SPECS:
        name = variable_of(spec)
        text = environment.get(name, "")
        if not text:
            continue
        if spec.parse is not None:
            given[spec.field] = _parse_text(spec, text, f"${name}", f"${name}")
        elif text.lower() in _FLAG_WORDS:
            given[spec.field] = _flag(spec, is_set=_FLAG_WORDS[text.lower()], origin=f"${name}")
        else:
            _refuse(f"${name}", "expected 1 or 0, yes or no, true or false")
    return given


def _parse_text(spec: OptionSpec, text: str, place: str, origin: str) -> GivenOption:
    assert spec.parse is not None
    try:
        return GivenOption(value=spec.parse(text), text=text, origin=origin)
    except ValueError as error:
        _refuse(place, f"{text!r}: {error}", error)


def _flag(spec: OptionSpec, *, is_set: bool, origin: str) -> GivenOption:
    value = spec.flag_value if is_set else not spec.flag_value
    return GivenOption(value=value, text="yes" if value else "no", origin=origin)


def _refuse(place: str, why: str, error: Exception | None = None) -> NoReturn:
    raise CommandFailed(ExitCode.USAGE, f"{place}: {why}") from error
