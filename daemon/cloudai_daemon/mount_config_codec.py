"""MountConfig as JSON, for the pipe from `cloudai mount` to the mount process.

The text may hold the token: it goes through a pipe only, never into argv, environment, file or log.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from cloudai_fusefs.mount_control import MountConfig

_PATH_FIELDS = frozenset({"mount_point", "state_dir", "cache_dir", "ca_file", "token_file"})


def encode_config(config: MountConfig) -> bytes:
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    return json.dumps(given, default=str).encode()


def decode_config(text: bytes) -> MountConfig:
    """Raises ValueError, KeyError or TypeError for anything but what encode_config makes."""
    given = json.loads(text)
    paths = {name: Path(given[name]) for name in _PATH_FIELDS if given.get(name) is not None}
    kernel_words = tuple(given["kernel_words"])
    return MountConfig(**{**given, **paths, "kernel_words": kernel_words})
