"""What a terminal shows of a running sweep: how far it is, and the live table; nothing is decided here."""
