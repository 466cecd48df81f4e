"""`tsrun bench`: what a server or an engine does under load, in one format."""
