"""The pictures of a report; their numbers are read elsewhere."""
