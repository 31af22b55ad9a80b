"""From a space to stages and to what they cost; nothing runs here."""
