"""What a service has loaded by the time it is ready, and who asked for it: for tests of its import budget."""

import json
from collections.abc import Iterable, Iterator

PROBE = """
import atexit, json, runpy, sys

chains = {}

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if name not in chains:
            frame, chain = sys._getframe(1), []
            while frame is not None:
                importer = frame.f_globals.get("__name__", "?")
                if not importer.startswith("importlib") and chain[-1:] != [importer]:
                    chain.append(importer)
                frame = frame.f_back
            chains[name] = chain

def tell():
    loaded = {name: chains.get(name, []) for name in list(sys.modules) if type(sys.modules[name]) is not type(None)}
    print(json.dumps(loaded), flush=True)

sys.meta_path.insert(0, Recorder())
atexit.register(tell)
sys.argv = [MODULE]
runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
"""


def probe(module: str) -> str:
    """Code for `python -c` that runs a service, and says at its end what was loaded, as one line of JSON on stdout."""
    return f"MODULE = {module!r}\n{PROBE}"


def offenders(output: str, forbidden: Iterable[str]) -> list[str]:
    """Each of the `forbidden` packages that was loaded, with the chain of modules that led to it.

    Args:
        output: what the probe printed.
    """
    loaded: dict[str, list[str]] = json.loads(output.splitlines()[-1])
    return list(_offenders(loaded, forbidden))


def _offenders(loaded: dict[str, list[str]], forbidden: Iterable[str]) -> Iterator[str]:
    for package in forbidden:
        found = next((name for name in loaded if name == package or name.startswith(f"{package}.")), None)
        if found is not None:
            yield " <- ".join([found, *loaded[found]])
