"""The registry server: the OCI distribution specification 1.1 over a content store. Knows no listener and no daemon."""
