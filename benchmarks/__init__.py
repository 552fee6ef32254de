"""What starting a container costs, measured side by side in one run. `make bench`; docs/benchmarks.md says what each number means."""
