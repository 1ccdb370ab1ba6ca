"""A real `cloudai volume-plugin`, and engines' requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from support.mount_process import COMMAND_SECONDS_MAX, PROGRAM, MountProcess

# As docker sends it: https://docs.docker.com/engine/extend/plugin_api/.
_DOCKER_HEADERS = {"Accept": "application/vnd.docker.plugins.v1.2+json", "User-Agent": "Docker-Client"}


class VolumePluginProcess:
    """A context: serves volumes of the mount at the socket. It may be started again, on the same state."""

    def __init__(self, mount: MountProcess, socket_path: Path, state_dir: Path) -> None:
        self._command = [
            *[str(PROGRAM), "volume-plugin", "--mount", str(mount.mount_point)],
            *["--socket", str(socket_path), "--state", str(state_dir)],
        ]
        self._socket_path = socket_path
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> VolumePluginProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._end(signal.SIGTERM) == 0
        assert not self._socket_path.exists()

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert line.endswith(f"are served at {self._socket_path}\n"), line

    def restart(self) -> None:
        """kill -9 and start again."""
        self._end(signal.SIGKILL)
        self.start()

    def post(self, call: str, **request: Any) -> tuple[int, dict[str, Any]]:
        """As docker's client does: status and answer."""
        connection = _UnixConnection(self._socket_path)
        try:
            connection.request("POST", call, json.dumps(request), _DOCKER_HEADERS)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        os.kill(self._process.pid, number)
        _, errors = self._process.communicate(timeout=COMMAND_SECONDS_MAX)
        assert "Traceback" not in errors, errors
        return self._process.returncode


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=COMMAND_SECONDS_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(COMMAND_SECONDS_MAX)
        self.sock.connect(str(self._path))
