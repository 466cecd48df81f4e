"""The runtime: artifacts, executor, engine and server."""
