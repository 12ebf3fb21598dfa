"""Run cases of the fuzz and write what went wrong: ``python fuzz.py configurations|files FOLDER FAULTS FIRST LAST``.

A line of FAULTS is a case as JSON: its number before it runs, its fault after it. So the number of a case that ends the
process is known, too.
"""

import json
import os
import random
import resource
import shutil
import sys
from pathlib import Path

import configurations
import damage
import harness

SEED = 11


def main(kind, folder, faults, first, last):
    harness.stop_before_training()
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    case = of_configuration(folder) if kind == "configurations" else of_file(folder)
    with open(faults, "a") as log:
        for number in range(first, last):
            what = case(random.Random(f"{SEED} {kind} {number}"), number)
            print(json.dumps({"case": number, "about": str(what[0])}), file=log, flush=True)
            found = harness.fault(what[1])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                json.dumps(
                    {"case": number, "fault": found, "peak": peak, "about": str(what[0]), "command": repr(what[1])}
                ),
                file=log,
                flush=True,
            )


def of_configuration(folder):
    options = configurations.Options(folder)

    def case(chance, number):
        given = configurations.arguments(chance, options)
        file = options.folder / "own.yaml"
        return file.read_text(errors="surrogatepass") if "--config" in given else "", given

    return case


def of_file(folder):
    whole, worn = folder / "whole", folder / "worn"
    files = [
        file for file in sorted(whole.rglob("*")) if file.is_file() and not {"none", "oracle", "seed-1"} & {*file.parts}
    ]
    kinds = {}
    for file in files:
        kinds.setdefault(
            (file.relative_to(whole).parts[0], file.suffix, "" if file.suffix in (".npz", ".png") else file.name), []
        ).append(file)
    kinds = [group for _, group in sorted(kinds.items())]

    def case(chance, number):
        shutil.rmtree(worn, ignore_errors=True)
        chosen = chance.choice(chance.choice(kinds)).relative_to(whole)
        for top in {chosen.parts[0], "images"}:
            (shutil.copytree if (whole / top).is_dir() else _copy)(whole / top, worn / top)
        file = worn / chosen
        damage.damage(chance, file, files)
        return chosen, damage.commands(chance, worn, file)

    return case


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    if sys.argv[1] == "materials":
        damage.materials(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
