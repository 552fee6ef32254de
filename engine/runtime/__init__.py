"""The OCI runtime without a daemon: operations, plans."""
