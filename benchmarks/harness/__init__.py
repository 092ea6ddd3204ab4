"""How measurements are run: processes, rounds, payloads, statistics."""
