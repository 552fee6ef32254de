"""The Docker Engine API over `engine.service`: requests are parsed, services called, records rendered. No logic, no state."""
