"""The update: batches, optimizer, and one jitted step."""
