from tests.plugins.deployed import catalog, deployed, first, second, session, settings

__all__ = ["catalog", "deployed", "first", "second", "session", "settings"]
