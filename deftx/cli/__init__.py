"""The command `deftx`: arguments, messages and exit codes; the work is done in the other packages."""
