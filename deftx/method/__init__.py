"""What each stage runs, Algorithm 1 of the paper among it; nothing is scheduled here."""
