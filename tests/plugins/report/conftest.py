from tests.plugins.deployed import bucket, catalog, deployed, first, origin, second, session, settings

__all__ = ["bucket", "catalog", "deployed", "first", "origin", "second", "session", "settings"]
