"""`python -m deftx`: see `cli.app`."""

from deftx.cli.app import app

if __name__ == "__main__":
    app(prog_name="deftx")
