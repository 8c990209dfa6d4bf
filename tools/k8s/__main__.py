"""`python -m tools.k8s render [--check]`, `… check` and `… nsc ACCOUNT`, from the project's root."""

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "render": "write the parts of k8s/ that follow from declarations",
    "check": "build every overlay, and validate what comes out",
    "nsc": "print the nsc commands that make the users in an account",
}


def main() -> None:
    """Run one command with the arguments after it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.k8s",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:8} {help}" for name, help in COMMANDS.items()),
    )
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    # Imported when asked for: each needs something else of what is installed.
    sys.exit(import_module(f"tools.k8s.{given.command}").main(given.arguments))


if __name__ == "__main__":
    main()
