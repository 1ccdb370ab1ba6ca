from __future__ import annotations

import pytest

from cloudai_model.service_manager import ServiceManager, extend_timeout, find_service_manager

PID = 100


@pytest.mark.parametrize(
    ("environment", "manager"),
    [
        ({}, ServiceManager()),
        ({"WATCHDOG_USEC": "1000000"}, ServiceManager()),
        ({"NOTIFY_SOCKET": "/run/notify"}, ServiceManager(address="/run/notify")),
        ({"NOTIFY_SOCKET": "@systemd/notify"}, ServiceManager(address="\0systemd/notify")),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, ServiceManager()),
        (
            {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "60000000"},
            ServiceManager(address="/run/notify", alive_seconds=30.0),
        ),
        (
            {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "100"},
            ServiceManager(address="/run/notify", alive_seconds=30.0),
        ),
        (
            {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "101"},
            ServiceManager(address="/run/notify"),
        ),
        (
            {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "soon"},
            ServiceManager(address="/run/notify"),
        ),
    ],
)
def test_manager_is_found_in_the_environment(environment: dict[str, str], manager: ServiceManager) -> None:
    assert find_service_manager(environment, PID) == manager


def test_time_is_asked_for_in_microseconds() -> None:
    assert extend_timeout(50.5) == "EXTEND_TIMEOUT_USEC=50500000"
