"""The Container Storage Interface: runs as volumes of Kubernetes.

In the order to read it: `driver` (all of it), `server` (the socket), `errors` and `requests` (what is answered,
and accepted), `identity`; `controller` and `volume_runs` (runs at the master); `node`, `node_volumes` (what is done on
this machine) with `staged_records`, `bind_mounts` and `volume_turns`; `keeper`, which puts back what has died.
"""
