"""The report of a run: what its page shows, and how."""
