"""How routers are set and how they route."""
