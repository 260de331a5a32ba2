"""``advnas``, and ``python -m advnas``: the command line, or what to install for it."""

import sys

EXTRA = 'pip install "advnas-ext[search]"'


def main() -> int:
    """Run the command line; returns its exit code. Without the packages of the extra ``search`` it is 2, and one line says so."""
    try:
        from advnas import cli

        return cli.main()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "advnas", "advnas_ext"):
            raise
        print(f"advnas: {package} is not installed; {EXTRA} brings what the commands need", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
