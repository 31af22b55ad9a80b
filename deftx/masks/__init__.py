"""From a weight change to the entries that train: denoise every matrix, choose k entries; nothing is trained here."""
