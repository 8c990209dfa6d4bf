"""`python -m tools.k8s nsc ACCOUNT`: the commands that make the users in an account of a server with JWTs."""

import argparse

from tools.k8s import permissions


def main(argv: list[str]) -> int:
    """Print them, a line each; gives the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.k8s nsc", description="Print nsc commands for the users.")
    parser.add_argument("account", help="the account that the streams are in")
    parser.add_argument("--caller", action="append", default=[], help="a user with an inbox prefix of its own")
    arguments = parser.parse_args(argv)
    for command in permissions.nsc_commands(arguments.account, permissions.users(arguments.caller)):
        print(command)
    return 0
