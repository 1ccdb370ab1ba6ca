"""Why a master did not answer, as far as a plain connection to it can tell: gRPC's own words are for who knows gRPC.

Asked once, when a mount could not be made. Blocks, for some seconds at most; sends nothing but TLS greetings, and never
a token. What it says is one sentence with what to do, "" where it knows nothing better.
"""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Final

from cloudai_daemon.mount_source import is_loopback

PROBE_SECONDS_MAX: Final = 3.0
"""Of each of the two attempts to connect."""

_GRPC_PROTOCOL: Final = "h2"

# What X509_verify_cert_error_string(3) knows by these numbers.
_NOT_YET_VALID: Final = 9
_HAS_EXPIRED: Final = 10
_UNTRUSTED: Final = frozenset({18, 19, 20, 21})
_OTHER_HOST: Final = frozenset({62, 64})

# What the library makes of a first record that is none: gRPC, ssh and most others; a proxy of HTTP.
_NOT_OF_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST"})

# X509_V_FLAG_NO_CHECK_TIME, which the library has no name for: all else is verified.
_WHENEVER: Final = 0x20_0000


def explain_silence(address: str, *, insecure: bool, ca_file: Path | None) -> str:
    """`address`: HOST:PORT, as gRPC was given it."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = _unverified() if insecure else _verified(ca_file)
    except ssl.SSLError:
        return f"{ca_file} holds no certificate: ca= names the PEM file of the master's authority"
    except OSError as error:
        return f"{ca_file}: {error.strerror}"
    try:
        connection = _connect(host, port)
    except (socket.gaierror, UnicodeError):  # the latter: of a name that DNS cannot have
        return f"no host {host} is known here: is the name right?"
    except ConnectionRefusedError:
        return "nobody listens there: are host and port right, and is the master running?"
    except TimeoutError:
        return "no connection comes about: is the host right, and no firewall in between?"
    except OSError:
        return ""
    try:
        with connection:
            if insecure:
                return _explain_insecure(connection, context)
            return _explain_tls(connection, context, host, port, ca_file)
    except TimeoutError:
        return "it takes connections and says nothing: is it the master, and does it hang?"
    except OSError:
        return ""


def _connect(host: str, port: str) -> socket.socket:
    return socket.create_connection((host, int(port)), PROBE_SECONDS_MAX)


def _explain_insecure(connection: socket.socket, context: ssl.SSLContext) -> str:
    with context.wrap_socket(connection):
        return "it wants TLS: mount without `insecure`, and with ca= where its authority is one of your own"


def _explain_tls(
    connection: socket.socket, context: ssl.SSLContext, host: str, port: str, ca_file: Path | None
) -> str:
    try:
        with context.wrap_socket(connection, server_hostname=host):
            return ""
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _UNTRUSTED:
            return "its certificate is signed by nobody that is trusted here: ca= names the file of its authority"
        if error.verify_code in _OTHER_HOST:
            return _explain_host(host, port, ca_file)
        if error.verify_code in (_NOT_YET_VALID, _HAS_EXPIRED):
            return _explain_times(host, port, ca_file, error.verify_code)
        return f"its certificate is refused: {error.verify_message}"
    except ssl.SSLError as error:
        if error.reason not in _NOT_OF_TLS:
            return ""
        there = f"{host}:{port}"
        hint = "mount with `insecure`" if is_loopback(there) else "has the master a certificate, is it one?"
        return f"what listens there speaks no TLS: {hint}"


def _explain_host(host: str, port: str, ca_file: Path | None) -> str:
    context = _verified(ca_file)
    context.check_hostname = False
    with _connect(host, port) as connection, context.wrap_socket(connection) as stream:
        certificate = stream.getpeercert() or {}
    names = ", ".join(str(entry[1]) for entry in certificate.get("subjectAltName", ())) or "nobody"
    return f"its certificate is for {names}, not for {host}: mount it by a name that the certificate has"


def _explain_times(host: str, port: str, ca_file: Path | None, verify_code: int) -> str:
    context = _verified(ca_file)
    context.verify_flags |= _WHENEVER
    with _connect(host, port) as connection, context.wrap_socket(connection, server_hostname=host) as stream:
        certificate = stream.getpeercert() or {}
    now_seconds = time.time()
    begins, ends = (ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter"))
    if now_seconds < begins:
        what = f"certificate is valid from {_utc(begins)} on"
        otherwise = "if that is right, the certificate is not"
    elif now_seconds > ends:
        what = f"certificate was valid until {_utc(ends)}"
        otherwise = "if that is right, the master needs a new one"
    else:
        what = f"authority's certificate {'has ended' if verify_code == _HAS_EXPIRED else 'is not valid yet'}"
        otherwise = "if that is right, the authority needs another one"
    clock = f"this machine's clock says {_utc(now_seconds)}: `timedatectl set-ntp true` sets it"
    return f"its {what}, and {clock}; {otherwise}"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _verified(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    context.set_alpn_protocols([_GRPC_PROTOCOL])
    return context


def _unverified() -> ssl.SSLContext:
    """To find out whether TLS is spoken at all: nothing is sent through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([_GRPC_PROTOCOL])
    return context
