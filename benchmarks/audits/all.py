"""The table of docs/audits-of-libraries.md: every script here whose library is installed.

    python benchmarks/audits/all.py [PYTHON ...]

Give the interpreters of several environments, since not all libraries live in one;
README.md says how to make them. Without any, this one is used.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from table import HEAD, MARK

HERE = Path(__file__).parent
SCRIPTS = {
    "sb3_recurrent_ppo.py": "sb3_contrib",
    "torchrl_modules.py": "torchrl",
    "snntorch_loops.py": "snntorch",
    "norse_cells.py": "norse",
    "ncps_modules.py": "ncps",
    "lightning_recipe.py": "lightning",
    "ignite_tbptt.py": "ignite",
    "skorch_net.py": "skorch",
    "darts_rnn.py": "darts",
    "neuralforecast_lstm.py": "neuralforecast",
}


def main() -> None:
    interpreters = sys.argv[1:] or [sys.executable]
    rows, failed = [], []
    for script, package in SCRIPTS.items():
        python = next((p for p in interpreters if has(p, package)), None)
        if python is None:
            failed.append(f"{script}: {package} is in none of the environments")
            continue
        done = subprocess.run(
            [python, str(HERE / script), "--rows"], capture_output=True, text=True, check=False
        )
        found = [r.removeprefix(MARK) for r in done.stdout.split("\n") if r.startswith(MARK)]
        if done.returncode or not found:
            failed.append(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
        rows += [r.split("\t") for r in found]
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")
    print("\n".join(failed), file=sys.stderr)
    sys.exit(bool(failed))


def has(python: str, package: str) -> bool:
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", look], check=False).returncode == 0


if __name__ == "__main__":
    main()
