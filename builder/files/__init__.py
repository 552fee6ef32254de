"""Files into layers: copies, owners, modes, archives. Synchronous, for worker threads."""
