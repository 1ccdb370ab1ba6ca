"""The Container Storage Interface: runs as volumes of Kubernetes. In the order to read it: `server` (the socket),
`identity`, `controller` and `volume_runs` (runs at the master), `node` (requests), `node_volumes` (what is done on this
machine) with `staged_records`, `bind_mounts` and `keeper`.
"""
