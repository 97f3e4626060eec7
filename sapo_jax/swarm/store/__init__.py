"""The groups a host holds: one SQLite file with retention, remembered ids and the outbox of own groups."""
