"""Loading a pretrained encoder and telling which of its parameters may change; nothing is trained here."""
