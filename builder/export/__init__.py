"""What becomes of results: images, archives, files, attestations."""
