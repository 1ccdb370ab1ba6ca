"""The Container Storage Interface: runs as volumes of Kubernetes.

In the order to read it: `driver` (all of it), `server` (the socket), `call_deadline` (until when an answer is waited
for), `errors` and `requests` (what is answered, and accepted), `identity`; `controller`, `volume_ids` and `volume_runs`
(runs at the master); `node` (volumes on this machine) with `staging` and `publishing`, which do what is asked, on
`staged_records`, `volume_mounts`, `bind_mounts` and `volume_turns`; `keeper` and `repairs`, for what has died.
"""
